"""The part of the configuration that says what is trained before the rounds, or without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from learners.config import LearnerConfig
from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.stages.base import PREFIX, Stage, in_order
from rlsys.stages.recipe import Recipe


@dataclass(kw_only=True)
class TrainConfig(Recipe):
    """What `rlsys train` trains, on `data` with `objective` and the run's learner."""

    model: str = ""
    """Where training starts: `stage:NAME`, or a Hugging Face folder or name."""
    stage: str | None = None
    """Name of one of `stages`, to be made instead; all of it is then said there."""


def check_stages(stages: Mapping[str, Any], *, gpus: float) -> None:
    """See that every stage is one, and finds the stages that it needs.

    Args:
        gpus: per rank of the learner.

    Raises:
        ConfigError: one is not, or does not, or has options of the learner that are none.
    """
    for name, stage in stages.items():
        if not isinstance(stage, Stage):
            raise ConfigError(
                f"stages.{name} must be a stage, got {stage!r}; choose one with +stage@stages.{name}=KIND, there are: "
                + ", ".join(sorted(registry.stage))
            )
        own = getattr(stage, "learner", None)
        if own is None:
            continue
        try:
            LearnerConfig.of(own, gpus=gpus)
        except ConfigError as error:
            raise ConfigError(f"stages.{name}: {error}") from error
    in_order(stages, [PREFIX + name for name in stages])
