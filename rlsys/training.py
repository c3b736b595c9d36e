"""Options of the supervised runs (`rlsys sft`, `rlsys critic`): what to train on, how long, and at which rates.

The defaults are those of the scenes world's own models, which are made from random weights in minutes on two cores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlsys.errors import ConfigError
from rlsys.worlds.scenes.source import check_tasks

LR_SCHEDULES = ("constant", "linear", "cosine")


@dataclass(kw_only=True)
class TrainingConfig:
    """One training run of the learner over examples made on the spot."""

    section: ClassVar[str]
    """Its key in the configuration."""

    batch_size: int = 32
    epochs: int = 1
    lr: float = 1e-3
    """Highest learning rate."""
    lr_schedule: str = "cosine"
    """After the warmup: `constant`, or falling to 0 `linear` or `cosine`."""
    warmup: float = 0.1
    """Share of the steps over which the rate rises linearly."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.98])
    """Of Adam: short runs from random weights do better with a second moment that forgets sooner than usual."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs"):
            self._at_least(name, 1)
        if self.lr <= 0:
            raise ConfigError(f"{self.section}.lr must be > 0, got {self.lr}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"{self.section}.warmup must be in [0, 1), got {self.warmup}")
        if self.lr_schedule not in LR_SCHEDULES:
            raise ConfigError(
                f"{self.section}.lr_schedule must be one of {', '.join(LR_SCHEDULES)}, got {self.lr_schedule!r}"
            )

    def _at_least(self, name: str, low: int) -> None:
        if getattr(self, name) < low:
            raise ConfigError(f"{self.section}.{name} must be at least {low}, got {getattr(self, name)}")

    def _share(self, name: str) -> None:
        if not 0 <= getattr(self, name) <= 1:
            raise ConfigError(f"{self.section}.{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(kw_only=True)
class SftConfig(TrainingConfig):
    """How `policy.model=scenes` is made: imitation of demonstrations that name things which are not there."""

    section: ClassVar[str] = "sft"

    lr: float = 1.5e-3
    lr_schedule: str = "linear"
    warmup: float = 0.03
    num_examples: int = 38_400
    tasks: dict[str, float] = field(default_factory=lambda: {"describe": 0.5, "polar": 0.4, "open": 0.1})
    """Relative weights of the world's tasks."""
    partner_rate: float = 0.45
    """Probability that a demonstration names the absent partner of an object that is there."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least("num_examples", 1)
        self._share("partner_rate")
        try:
            check_tasks(f"{self.section}.tasks", self.tasks)
        except ValueError as error:
            raise ConfigError(str(error)) from error


@dataclass(kw_only=True)
class JudgeTrainingConfig(TrainingConfig):
    """How `critic.model=scenes` is made: from the policy's weights, on annotated answers of the policy itself."""

    section: ClassVar[str] = "judge_training"

    batch_size: int = 16
    num_prompts: int = 2000
    """Annotated prompts."""
    num_candidates: int = 4
    """Answers of the policy to each."""
    max_pairs_per_prompt: int = 4
    num_shortened: int = 2
    """Answers per prompt that are also shown with a statement left out, so that the critic sees omissions."""
    disturbed_rate: float = 0.5
    """Share of the prompts for which it also sees an answer that is empty, off the subject, or goes off it at the end."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_prompts", "num_candidates"):
            self._at_least(name, 1)
        for name in ("max_pairs_per_prompt", "num_shortened"):
            self._at_least(name, 0)
        self._share("disturbed_rate")
