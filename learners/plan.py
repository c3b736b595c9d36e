"""The plan of one stretch of training, and the learning rate of each of its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from learners.config import one_of
from rlsys.errors import ConfigError
from rlsys.records import RoundPlan
from rlsys.schedules.phases import REFERENCES
from rlsys.stages.recipe import LR_SCHEDULES, Recipe


@dataclass(frozen=True, kw_only=True)
class FitPlan:
    """Options of one call of `fit` or `train`. They are plain values, because the plan is sent to the ranks."""

    lr: float
    """Highest learning rate."""
    lr_schedule: str = "constant"
    """The learning rate after the warmup: `constant`, or a fall to 0 that is `linear` or `cosine`."""
    warmup: float = 0.0
    """Share of the steps over which the learning rate rises linearly."""
    num_steps: int | None = None
    """Number of optimizer steps to come; every schedule but `constant` without warmup needs it."""
    epochs: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the objective that this stretch sets; the key `name` selects another objective."""
    reference: str = "previous"
    """The reference rule, `initial`, `previous` or `ema`; objectives that need a reference use it."""
    round: int | None = None
    """The round of this stretch; `None` for training outside of rounds. Responses of this round are treated differently from
    those of earlier rounds: KL is estimated on them, and under the reference rule `previous` their recorded logprobs are the
    reference."""
    policy_version: int = 0
    """Version of the weights that training starts from."""
    lag: int = 0
    """Number of rounds by which responses may have been sampled ahead of their training. The weights at the starts of as many
    earlier stretches are kept, so that those responses can be checked."""
    top_p: float = 1.0
    """The top_p at which the round's responses were sampled."""
    accumulated: bool = False
    """Whether the examples to come include some of earlier stretches, or of no stretch. The responses of such examples were
    not sampled by the weights that training starts from."""
    seed: int = 0
    """Seed of the order of batches from the second epoch on, and of dropout."""

    def __post_init__(self) -> None:
        if self.lr < 0:
            raise ConfigError(f"lr must be at least 0, got {self.lr}")
        if self.epochs < 1:
            raise ConfigError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 <= self.warmup < 1:
            raise ConfigError(f"warmup must be in [0, 1), got {self.warmup}")
        one_of("lr_schedule", self.lr_schedule, LR_SCHEDULES)
        one_of("reference", self.reference, REFERENCES)
        if self.num_steps is None and (self.lr_schedule != "constant" or self.warmup):
            raise ConfigError(f"lr_schedule {self.lr_schedule!r} with warmup {self.warmup} needs num_steps")

    @classmethod
    def of_round(cls, plan: RoundPlan, *, policy_version: int, seed: int) -> FitPlan:
        """The learner's part of a round's plan."""
        return cls(
            lr=plan.lr,
            epochs=plan.epochs,
            options=plan.options.get("objective", {}),
            reference=plan.reference,
            round=plan.round,
            policy_version=policy_version,
            lag=plan.lag,
            top_p=plan.top_p,
            accumulated=plan.brings_others,
            seed=seed,
        )

    @classmethod
    def of_recipe(cls, recipe: Recipe, *, seed: int, num_examples: int) -> FitPlan:
        """The plan of a training over `num_examples` examples."""
        return cls(
            lr=recipe.lr,
            lr_schedule=recipe.lr_schedule,
            warmup=recipe.warmup,
            num_steps=recipe.num_steps(num_examples),
            epochs=recipe.epochs,
            seed=seed,
        )

    def lr_at(self, step: int) -> float:
        """Learning rate of optimizer step `step`; steps are counted from 0."""
        if self.num_steps is None:
            return self.lr
        rising = round(self.warmup * self.num_steps)
        if step < rising:
            return self.lr * (step + 1) / rising
        if self.lr_schedule == "constant":
            return self.lr
        passed = min(1.0, (step - rising) / max(1, self.num_steps - rising))
        return self.lr * (1 - passed if self.lr_schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2)
