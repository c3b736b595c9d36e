"""Demonstrations of the scenes world: descriptions that name objects which are absent, and true answers to questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from rlsys import registry
from rlsys.data.base import Data, Examples
from rlsys.errors import ConfigError
from rlsys.records import Demonstration
from rlsys.worlds.scenes.source import check_tasks, demonstrations

if TYPE_CHECKING:
    from rlsys.stages.base import StageTools


@registry.data("scenes_demonstrations")
@dataclass(kw_only=True)
class ScenesDemonstrations(Data):
    """One demonstration for each of the first scenes of the `train` split."""

    produces: ClassVar[type] = Demonstration

    num_examples: int = 38_400
    tasks: dict[str, float] = field(default_factory=lambda: {"describe": 0.5, "polar": 0.4, "open": 0.1})
    """Relative weights of the world's tasks."""
    partner_rate: float = 0.45
    """Probability that a demonstration names the absent partner of an object that is present."""

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise ConfigError(f"data.num_examples must be at least 1, got {self.num_examples}")
        if not 0 <= self.partner_rate <= 1:
            raise ConfigError(f"data.partner_rate must be in [0, 1], got {self.partner_rate}")
        try:
            check_tasks("data.tasks", self.tasks)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def count(self) -> int:
        """See `Data.count`."""
        return self.num_examples

    def examples(self, model: Path, tools: StageTools) -> Sequence[Demonstration]:
        """See `Data.examples`."""

        def draw(index: int) -> Demonstration:
            return next(demonstrations(1, start=index, tasks=self.tasks, partner_rate=self.partner_rate))

        return Examples(self.num_examples, draw)
