"""Sections of the configuration that belong to no single part of the code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.errors import ConfigError
from rlsys.run.sync import TOLERANCES
from rlsys.schedules.phases import Phase, Schedule


def _at_least(section: str, options: Any, **lowest: float) -> None:
    for name, low in lowest.items():
        if not getattr(options, name) >= low:
            raise ConfigError(f"{section}.{name} must be at least {low}, got {getattr(options, name)}")


def _above_zero(section: str, options: Any, *names: str) -> None:
    for name in names:
        if not getattr(options, name) > 0:
            raise ConfigError(f"{section}.{name} must be > 0, got {getattr(options, name)}")


@dataclass(kw_only=True)
class ScheduleConfig(Phase):
    """The rules of every round; `phases` lists stretches of rounds whose rules differ from them."""

    phases: list[dict[str, Any]] = field(default_factory=list)
    """Each phase is a mapping of the same keys; an empty list means one phase of `rounds` rounds."""

    def build(self) -> Schedule:
        """
        Raises:
            ConfigError: a phase has a key that a phase does not have, or a wrong value.
        """
        names = list(Phase.__dataclass_fields__)
        base = {name: getattr(self, name) for name in names}
        for number, phase in enumerate(self.phases):
            for key in phase:
                if key not in base:
                    raise ConfigError(f"schedule.phases.{number}: no key {key!r}; there are: {', '.join(names)}")
        return Schedule([Phase(**{**base, **phase}) for phase in self.phases or [{}]])


@dataclass(kw_only=True)
class PolicyConfig:
    """The model to align."""

    model: str = "scenes"
    """`stage:NAME`, a name in `aliases`, or a Hugging Face folder or name."""
    num_parameters_b: float | None = None
    """Billions of parameters, used by the plan when the weights are not on this machine."""


@dataclass(kw_only=True)
class EngineRoleConfig:
    """Actors with one inference engine each."""

    num_actors: int = 1
    cores: float = 0
    """Cores per actor; 0 divides the available cores among the actors."""
    gpus: float = 0
    """GPUs per actor: the engine's tensor-parallel size, or a fraction of a shared GPU."""
    batch: int = 32
    """Prompts (rollout) or groups (judge) per call. A run is reproducible only at the same value, because another batch size
    rounds differently.
    """
    deadline_s: float = 900.0
    """Longest wait for the first results of a call, and between two results after that, seconds."""
    engine: Any = None

    def check(self, section: str) -> None:
        """
        Args:
            section: key in `RunConfig`.

        Raises:
            ConfigError: a value is out of its range, or does not fit the engine.
        """
        _at_least(section, self, num_actors=1, batch=1, cores=0, gpus=0)
        _above_zero(section, self, "deadline_s")
        if not hasattr(self.engine, "receivers"):
            raise ConfigError(
                f"{section}.engine must be an engine, got {self.engine!r}; choose one with engine@{section}.engine=NAME"
            )
        if self.gpus and self.engine.receivers != max(1, self.gpus):
            raise ConfigError(
                f"{section}.gpus must be the engine's tensor-parallel size, {self.engine.receivers}, got {self.gpus:g}"
            )


@dataclass(kw_only=True)
class RoleConfig(EngineRoleConfig):
    """The engines of a named role: `judge`, or any role that a plug-in asks. Without a choice of its own, the role uses the
    policy's kind of engine.

    For feedback that asks no engine, the judge's `num_actors` is the number of processes that compute the feedback.
    """

    model: str = ""
    """A Hugging Face folder or name; `stage:NAME`, the model that a stage of `stages` makes; a short name that a preset
    declares, such as `scenes`; or `policy`, which lets the policy's own engines serve the role with the weights of the round.
    """
    num_parameters_b: float | None = None
    """Billions of parameters, used by the plan when the weights are not on this machine."""

    @property
    def is_policy(self) -> bool:
        """Whether the policy's engines serve this role."""
        return self.model == "policy"


@dataclass(kw_only=True)
class EvalConfig:
    """How the policy is measured on held-out prompts."""

    every: int = 1
    """Rounds between two evaluations; the last round is always evaluated. 0 never evaluates."""
    batch: int = 256
    """Prompts per engine call. The default is larger than in a round, because a round samples several responses to a prompt.
    Another batch size rounds differently.
    """

    def __post_init__(self) -> None:
        _at_least("eval", self, every=0, batch=1)


@dataclass(kw_only=True)
class SyncConfig:
    """How the run checks that weight updates arrived."""

    tolerance: float | None = None
    """Largest allowed difference between the engine's and the learner's logprob of a probe's token, nats; `null` is 0.001 where
    the learner's precision is fp32 and 0.5 where it is bf16.
    """
    num_probes: int = 4
    deadline_s: float = 300.0

    def __post_init__(self) -> None:
        _at_least("sync", self, num_probes=1)
        _above_zero("sync", self, "deadline_s")
        if self.tolerance is not None:
            _above_zero("sync", self, "tolerance")

    def tolerance_at(self, precision: str) -> float:
        """The effective tolerance, nats, for a learner's precision."""
        return TOLERANCES[precision] if self.tolerance is None else self.tolerance


@dataclass(kw_only=True)
class OutputConfig:
    """What a run writes to disk and to trackers."""

    runs_dir: str = "runs"
    keep_checkpoints: int = 0
    """Number of checkpoints to keep; 0 keeps the checkpoint of every round."""
    tensorboard: bool = True
    wandb: Any = None
    """Arguments of `wandb.init`, such as `{project: mine}`; `null` is off."""
    examples: int = 20
    """Number of examples on the report page."""

    def __post_init__(self) -> None:
        _at_least("output", self, keep_checkpoints=0, examples=0)
        if not isinstance(self.wandb, (dict, type(None))):
            raise ConfigError(f"output.wandb must be a mapping such as {{project: mine}}, or null, got {self.wandb!r}")
