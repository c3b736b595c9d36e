"""Trains on a set of examples: supervised fine-tuning, reward models, continued pre-training, offline preferences."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import MISSING

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.stages.base import Stage, StageTools
from rlsys.stages.recipe import Recipe


@registry.stage("train")
@dataclass(kw_only=True)
class Train(Stage, Recipe):
    """Trains a model on `data` with `objective`, which must learn from the record class of the data."""

    needs_learner: ClassVar[bool] = True

    model: str = MISSING
    """The model that training starts from: `stage:NAME`, or a Hugging Face folder or name."""
    data: Any = MISSING
    """A plug-in of group `data`."""
    objective: Any = MISSING
    """A plug-in of group `objective`."""
    learner: dict[str, Any] | None = None
    """Options of the learner; options that are not given have their defaults. So the model does not depend on the run that it
    is made for; only the device is taken from the run. `null` takes the run's own learner options."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model:
            raise ConfigError(f"train.model must name a model, got {self.model!r}")
        if MISSING not in (self.data, self.objective):
            check_match(self.data, self.objective)

    def models(self) -> tuple[str, ...]:
        """See `Stage.models`."""
        return (self.model, *self.data.models())

    def summary(self) -> str:
        """See `Stage.summary`."""
        count = self.data.count()
        much = "" if count is None else f" ({count:,} examples, {self.num_steps(count):,} steps)"
        return (
            f"{self.model} learns from {registry.data.name_of(self.data)}{much} by "
            f"{registry.objective.name_of(self.objective)}: {self.epochs} x batches of {self.batch_size}, "
            f"lr {self.lr:g} {self.lr_schedule}"
        )

    def check(self) -> None:
        """See `Stage.check`."""
        self.data.count()

    def make(self, target: Path, tools: StageTools) -> None:
        """See `Stage.make`."""
        model = tools.model(self.model)
        examples = self.data.examples(model, tools)
        tools.train(model, examples, target, objective=self.objective, recipe=self, learner=self.learner)


def check_match(data: Any, objective: Any) -> None:
    """Check that an objective learns from the record class that a source produces.

    Raises:
        ConfigError: one of the two is not such a plug-in, or the record classes differ.
    """
    if not hasattr(data, "produces"):
        raise ConfigError(f"train.data must be a source of examples, got {data!r}")
    if not hasattr(objective, "consumes"):
        raise ConfigError(f"train.objective must be an objective, got {objective!r}")
    if objective.consumes is not data.produces:
        fitting = sorted(name for name, each in registry.objective.items() if each.consumes is data.produces)
        raise ConfigError(
            f"objective={registry.objective.name_of(objective)} learns from {objective.consumes.__name__} records, and "
            f"data={registry.data.name_of(data)} has {data.produces.__name__} records; objectives that learn from "
            f"those: {', '.join(fitting) or 'none'}"
        )
