"""Memory of one learner rank, computed before anything is loaded. This module imports neither torch nor DeepSpeed.

The model has N parameters, adapters included, and T of them are trained. A weight takes b bytes (2 in bf16, else 4). There are
R ranks. DeepSpeed (0.19, measured) keeps, in bytes:

    stage   weights   gradients, from the first micro-batch to the step       masters   moments
    0       b N       b T; on several ranks as much again while they add up   -         8 T
    1       b N       b T                                                     4 T / R   8 T / R
    2       b N       2 b T / R, the second half while micro-batches add up   4 T / R   8 T / R
    3       b N / R   b T / R; on several ranks gathered weights besides      4 T / R   8 T / R

At stage 0 AdamW steps the parameters themselves. At the other stages it steps float32 masters, which are separate tensors even
in fp32. Each step then makes two copies of this rank's gradients, a flat one and one in float32; in fp32 the two are the same.
From stage 1 on, gradients pass through buffers of a fixed size (`bucket_numel`).

The estimate covers the two moments at which a rank holds most: the backward pass of a step, and the step itself. It leaves out
activations and logits, images and their features, the CUDA context, memory that the allocator wastes, and the checkpoint in
host memory while it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from learners.config import LearnerConfig
from rlsys.placement.machine import GIB
from rlsys.records import RoundPlan

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of every tensor of a checkpoint, by its name there."""

GATHERED_NUMEL = 1_000_000_000
"""Largest number of weights that ZeRO-3 holds gathered at a time (DeepSpeed's `stage3_max_live_parameters`)."""
PREFETCHED_NUMEL = 50_000_000
"""Number of weights that ZeRO-3 gathers in addition, ahead of the layers that need them (DeepSpeed's
`stage3_prefetch_bucket_size`)."""
SUB_GROUP_NUMEL = 1_000_000_000
"""Largest number of elements that ZeRO-3 steps at a time (DeepSpeed's `sub_group_size`)."""
ADAPTER_SHARE = 0.01
"""Assumed number of LoRA parameters per parameter of the model, where the model's shapes are unknown."""


def bucket_numel(on_gpu: bool) -> int:
    """Number of elements of a buffer in which DeepSpeed reduces gradients. It is allocated whole, whatever the model's size."""
    return 500_000_000 if on_gpu else 5_000_000


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The number of a policy's parameters."""

    num_all: int
    """Parameters of the model and its adapters."""
    num_trained: int

    @classmethod
    def of_number(cls, number: int, config: LearnerConfig) -> Parameters:
        """Estimate the numbers from the number of the model's parameters alone.

        The estimate assumes that LoRA adds 1 % of them. It also assumes that `learner.freeze` freezes none, which gives an
        upper bound.
        """
        if not config.has_adapter:
            return cls(num_all=number, num_trained=number)
        adapters = int(number * ADAPTER_SHARE)
        return cls(num_all=number + adapters, num_trained=adapters)

    @classmethod
    def of_shapes(cls, shapes: Shapes, config: LearnerConfig) -> Parameters:
        """Count the parameters from the shapes of a checkpoint.

        Frozen parameters and LoRA's targets are found by the names in the module as well as by those on disk. With
        `all-linear`, every matrix that is neither the embedding nor the output head counts as a target.
        """
        num_all = num_trained = 0
        for name, shape in shapes.items():
            own = math.prod(shape)
            adapters = _num_adapter(name, shape, config) if config.has_adapter else 0
            num_all += own + adapters
            if not any(f".{part}." in f".{known}." for part in config.freeze for known in _names(name, shapes)):
                num_trained += adapters if config.has_adapter else own
        return cls(num_all=num_all, num_trained=num_trained)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Memory of one rank at the moment at which it holds most, bytes."""

    weights: float
    gradients: float
    """Gradients with DeepSpeed's buffers for them, and under ZeRO-3 also the gathered weights."""
    optimizer: float
    """Masters and moments."""
    copies: float
    """Copies of the trained weights: the initial ones, the moving average, and those of versions that are still needed."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.copies

    def __str__(self) -> str:
        parts = {name: value / GIB for name, value in vars(self).items()}
        return ", ".join(f"{name} {value:.1f}" for name, value in parts.items()) + " GiB"


def plan_memory(config: LearnerConfig, parameters: Parameters, *, num_starts: int = 0) -> Memory:
    """The memory of one rank.

    Args:
        num_starts: number of copies of the weights at starts of rounds (`max_starts`).
    """
    held = _num_bytes(config)
    trained_here = parameters.num_trained / config.num_ranks
    weights_held_by = config.num_ranks if config.stage == 3 else 1
    same_precision = num_starts + (config.initial_copy and not config.has_adapter)
    copies = held * same_precision + (4 if config.ema_decay else 0)
    return Memory(
        weights=held * parameters.num_all / weights_held_by,
        gradients=max(_in_passes(config, parameters), _in_step(config, parameters)),
        optimizer=12 * trained_here if config.stage else 8 * parameters.num_trained,
        copies=copies * parameters.num_trained / weights_held_by,
    )


NEEDS = frozenset({"reference", "old"})
"""What an objective may need that weights at the starts of rounds give."""


def keeps_start(*, lag: int, reference: str | None, needs: frozenset[str], has_others: bool) -> bool:
    """Whether the weights at a round's start are kept, as reference of older responses, to check responses that come late, or
    for responses without recorded logprobs.

    Args:
        lag: the lag of the round.
        reference: the reference rule of the round.
        needs: the needs of the objective.
        has_others: whether the round trains on responses that no recorded logprobs come with.
    """
    if lag > 0 and needs & NEEDS:
        return True
    return "reference" in needs and reference == "previous" and (has_others or "mismatched" in needs)


def max_starts(
    plans: Sequence[RoundPlan], needs: Sequence[frozenset[str]] | None = None, *, start_copy: bool = False
) -> int:
    """Largest number of copies of weights at starts of rounds that are kept at a time.

    Args:
        plans: the plans of the rounds.
        needs: the needs of each round's objective; `NEEDS` if they are unknown.
        start_copy: option `start_copy` of the learner.
    """
    kept: set[int] = set()
    most = 0
    for plan, needed in zip(plans, [NEEDS] * len(plans) if needs is None else needs, strict=True):
        kept = {version for version in kept if version >= plan.round - plan.lag}
        has_others = plan.brings_others or start_copy
        if keeps_start(lag=plan.lag, reference=plan.reference, needs=needed, has_others=has_others):
            kept.add(plan.round)
        most = max(most, len(kept))
    return most


def _num_bytes(config: LearnerConfig) -> int:
    return 2 if config.precision == "bf16" else 4


def _in_passes(config: LearnerConfig, parameters: Parameters) -> float:
    """Bytes of gradients and buffers at the end of a backward pass."""
    held, trained, ranks = _num_bytes(config), parameters.num_trained, config.num_ranks
    on_gpu = config.gpus > 0
    bucket = held * bucket_numel(on_gpu)
    if config.stage == 0:
        return held * trained * (1 if ranks == 1 else 2)
    num_buckets = 2 if on_gpu else 1  # the second is filled while the first is sent
    if config.stage == 1:
        return held * trained + num_buckets * bucket
    if config.stage == 2:
        return 2 * held * trained / ranks + num_buckets * bucket
    # A single rank gathers nothing, because its own shard is the whole weight.
    gathered = held * sum(min(parameters.num_all, most) for most in (GATHERED_NUMEL, PREFETCHED_NUMEL) if ranks > 1)
    return held * trained / ranks + bucket + gathered


def _in_step(config: LearnerConfig, parameters: Parameters) -> float:
    """Bytes of gradients and buffers while the optimizer steps."""
    held, here = _num_bytes(config), parameters.num_trained / config.num_ranks
    if config.stage == 0:
        return held * parameters.num_trained
    copies = held if held == 4 else held + 4
    if config.stage < 3:
        return (held + copies) * here
    return held * here + copies * min(here, SUB_GROUP_NUMEL) + held * bucket_numel(config.gpus > 0)


def _num_adapter(name: str, shape: tuple[int, ...], config: LearnerConfig) -> int:
    """Number of parameters of the two low-rank factors of a weight; 0 if LoRA does not target it."""
    module, _, kind = name.rpartition(".")
    if kind != "weight" or len(shape) < 2:
        return 0
    last, targets = module.rpartition(".")[2], config.lora.target_modules
    if targets == ["all-linear"]:
        is_target = len(shape) == 2 and last != "lm_head" and "embed" not in last
    else:
        is_target = any(f".{module}".endswith(f".{target}") for target in targets)
    return config.lora.r * (shape[0] + math.prod(shape[1:])) if is_target else 0


def _names(name: str, shapes: Shapes) -> Iterator[str]:
    """Names by which `learner.freeze` may refer to a tensor: the name on disk, and the names in the module of transformers 5.

    Vision-language checkpoints of earlier releases name the tower `visual` and the text model `model`. In the module they are
    `model.visual` and `model.language_model`.
    """
    yield f"model.{name}"
    has_tower = any(known.startswith("visual.") for known in shapes)
    if has_tower and name.startswith("model."):
        yield f"model.model.language_model.{name.removeprefix('model.')}"
    elif name.startswith("visual."):
        yield f"model.model.{name}"
