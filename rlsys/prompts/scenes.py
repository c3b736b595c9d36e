"""Prompts about scenes of the embedded world."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.records import Prompt
from rlsys.worlds.scenes.source import check_tasks, choose_task, make_prompt
from rlsys.worlds.scenes.world import SPLITS


@registry.prompts("scenes")
@dataclass(kw_only=True)
class ScenesPrompts:
    """One prompt per scene of a split, without end."""

    split: str = "online"
    offset: int = 0
    """Index of the first scene in the split."""
    tasks: dict[str, float] = field(default_factory=lambda: {"describe": 1.0})
    """Relative weights of `describe`, `polar` and `open`."""

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ConfigError(f"prompts.split must be one of {', '.join(SPLITS)}, got {self.split!r}")
        if self.offset < 0:
            raise ConfigError(f"prompts.offset must be >= 0, got {self.offset}")
        try:
            check_tasks("prompts.tasks", self.tasks)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """Prompts of scenes `offset + start ...`; never runs out."""
        for index in range(self.offset + start, self.offset + start + count):
            yield make_prompt(self.split, index, choose_task(self.split, index, self.tasks))
