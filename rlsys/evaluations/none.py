"""No held-out evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rlsys.records import Interval, Prompt, RolloutGroup
from rlsys.registry import evaluation


@evaluation("none")
@dataclass(kw_only=True)
class NoEvaluation:
    """For data without a truth to measure against."""

    directions: ClassVar[dict[str, int]] = {}

    def prompts(self) -> list[Prompt]:
        return []

    def measure(self, groups: Sequence[RolloutGroup]) -> dict[str, Interval]:
        return {}
