"""Options of the learner. This module imports no torch, so that a command line can be parsed without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from rlsys.errors import ConfigError

PRECISIONS = ("fp32", "bf16")
PATHS = ("auto", "shared", "plain")

_REFERENCE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.05}
"""Allowed difference between an engine's logprobs and the learner's, nats per token, mean over one response.

bf16 keeps only 8 bits of a logit, hence its larger tolerance.
"""


@dataclass(kw_only=True)
class LoraConfig:
    """Low-rank adapters instead of full weights (arXiv:2106.09685)."""

    r: int = 0
    """Rank; 0 trains the full weights. It is not `lora: null`, because the command line could then not set a single field."""
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """Names of linear modules, or the single entry `all-linear`."""

    def __post_init__(self) -> None:
        if self.r < 0:
            raise ConfigError(f"lora.r must be at least 0, got {self.r}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"lora.dropout must be in [0, 1), got {self.dropout}")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty")


@dataclass(kw_only=True)
class LearnerConfig:
    """How the policy is trained; these options hold for every objective."""

    num_ranks: int = 1
    zero_stage: int = 0
    """DeepSpeed ZeRO stage: 1 partitions the optimizer state over the ranks, 2 also the gradients, 3 also the weights."""
    precision: str = "fp32"
    """`fp32` or `bf16` (with fp32 master weights)."""
    batch_size: int = 32
    """Examples per optimizer step, all ranks together."""
    micro_batch_tokens: int = 8192
    """Tokens per forward pass of one rank; a prompt and its responses are never split, however long they are."""
    path: str = "auto"
    """`shared` runs a prompt and its images once for all responses to it, `plain` runs every response as a sequence of its
    own, and `auto` takes `shared` where the architecture allows it."""
    grad_clip: float = 1.0
    """Largest gradient norm; 0 is no limit."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices, that is of all parameters of two or more dimensions, including embeddings and the output
    head. Norms and biases are never decayed.
    """
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    freeze: list[str] = field(default_factory=list)
    """Parts of names, e.g. `visual` or `layers.0`. A parameter is not trained if its name contains one of them as whole
    dotted parts.
    """
    lora: LoraConfig = field(default_factory=LoraConfig)
    activation_checkpointing: bool = False
    initial_copy: bool = False
    """Keep the weights of version 0, for reference rule `initial`. With LoRA this is not needed, because the adapter can be
    switched off.
    """
    start_copy: bool = False
    """Keep the weights of every round's start, for reference rule `previous` on responses that no engine sampled. This is not
    needed if the first batch of a round has such responses, because the weights are then kept from that batch on.
    """
    ema_decay: float = 0.0
    """Decay per optimizer step of the moving average for reference rule `ema`; 0 keeps no average."""
    reference_checks: int = 8
    """Responses per round and rank whose recorded logprobs are checked against a forward pass; 0 checks none."""
    reference_tolerance: float | None = None
    """Tolerance of that check, nats per token, mean over a response; `null` is 0.001 in fp32 and 0.05 in bf16."""
    kl_responses: int = 64
    """Responses of a round on which `kl` is estimated, all ranks together; 0 makes no estimate."""
    head_chunk_mib: int = 0
    """Memory for one piece of full-vocabulary logits, MiB. Two or three pieces exist at once. 0 is 64, on a GPU 512."""
    image_cache_mib: int = 256
    """Memory for processed images, MiB. As much again is used for their features if the vision tower is frozen."""
    deadline_s: float = 900.0
    """Longest time for one step, save or load, seconds."""
    cores: float = 0
    """Cores per rank; 0 divides the available cores among the processes."""
    gpus: float = 0
    """GPUs per rank; a fraction means that the GPU is shared."""

    def __post_init__(self) -> None:
        for name in ("num_ranks", "batch_size", "micro_batch_tokens", "image_cache_mib"):
            if getattr(self, name) < 1:
                raise ConfigError(f"learner.{name} must be at least 1, got {getattr(self, name)}")
        for name in (
            "grad_clip",
            "weight_decay",
            "head_chunk_mib",
            "reference_checks",
            "kl_responses",
            "cores",
            "gpus",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"learner.{name} must be at least 0, got {getattr(self, name)}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ConfigError(f"learner.zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}")
        one_of("learner.precision", self.precision, PRECISIONS)
        one_of("learner.path", self.path, PATHS)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"learner.betas must be two numbers in [0, 1), got {self.betas}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"learner.ema_decay must be in [0, 1), got {self.ema_decay}")
        if self.deadline_s <= 0:
            raise ConfigError(f"learner.deadline_s must be > 0, got {self.deadline_s}")
        if self.reference_tolerance is not None and self.reference_tolerance <= 0:
            raise ConfigError(f"learner.reference_tolerance must be > 0, got {self.reference_tolerance}")

    @classmethod
    def of(cls, options: Mapping[str, Any], *, gpus: float) -> LearnerConfig:
        """The configuration with the given options; all other options have their defaults.

        Args:
            gpus: GPUs per rank, used unless `gpus` is among the options.

        Raises:
            ConfigError: an option does not exist, or refuses its value.
        """
        # OmegaConf checks and converts each value by the field's type, as it does for values of the command line.
        from omegaconf import OmegaConf
        from omegaconf.errors import OmegaConfBaseException

        known = [field.name for field in fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(f"learner has no option {name!r}; there are: {', '.join(known)}")
        try:
            return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), {"gpus": gpus, **options}))
        except OmegaConfBaseException as error:
            raise ConfigError(f"learner: {str(error).splitlines()[0]}") from error

    @property
    def has_adapter(self) -> bool:
        """Whether LoRA's matrices are trained instead of the weights."""
        return self.lora.r > 0

    @property
    def stage(self) -> int:
        """The ZeRO stage that DeepSpeed is given.

        In bf16 DeepSpeed partitions the float32 state at stage 0 just as at stage 1, so stage 1 is used instead of 0.
        """
        return max(self.zero_stage, 1) if self.precision == "bf16" else self.zero_stage

    @property
    def tolerance(self) -> float:
        """The reference tolerance in force, nats per token."""
        if self.reference_tolerance is not None:
            return self.reference_tolerance
        return _REFERENCE_TOLERANCE[self.precision]


def one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `ConfigError` unless `value` is one of `allowed`."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
