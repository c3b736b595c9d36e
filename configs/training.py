"""The part of the configuration that describes training before the rounds, or without rounds."""

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
    """Model that training starts from: `stage:NAME`, or a Hugging Face folder or name."""
    stage: str | None = None
    """Name of a stage in `stages` to make instead; that stage then holds all the settings."""


def check_stages(stages: Mapping[str, Any], *, gpus: float) -> None:
    """Check that every entry of `stages` is a stage, and that the stages it depends on exist.

    Args:
        stages: stages by name.
        gpus: GPUs per rank of the learner.

    Raises:
        ConfigError: an entry is not a stage, depends on a stage that does not exist, or gives the learner options that it does
            not have.
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
