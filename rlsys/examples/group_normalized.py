"""Advantages as distances from the group's mean score in standard deviations (GRPO: DeepSeekMath, arXiv 2402.03300, section
4.1.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.examples.advantages import candidate_scores, with_advantages
from rlsys.records import ScoredGroup, ScoredResponse


@registry.examples("group_normalized")
@dataclass(kw_only=True)
class GroupNormalized:
    """Builds one example per candidate, with advantage A_i = (r_i - mean) / (std + eps) over the group's candidates.

    A group with fewer than two scored candidates gives no example. A group of equal scores gives advantages of 0; then only the
    divergence term of an objective has an effect.
    """

    produces: ClassVar[type] = ScoredResponse

    eps: float = 1e-5
    """Number added to the standard deviation, score units. It bounds advantages where scores hardly differ."""
    ddof: int = 0
    """Degrees of freedom that the standard deviation subtracts: 0 for that of a population, 1 for that of a sample."""

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ConfigError(f"examples.eps must be > 0, got {self.eps}")
        if self.ddof not in (0, 1):
            raise ConfigError(f"examples.ddof must be 0 or 1, got {self.ddof}")

    def __call__(self, scored: ScoredGroup) -> list[ScoredResponse]:
        scores = np.array(candidate_scores(scored), dtype=np.float64)
        if len(scores) < 2:
            return []
        advantages = (scores - scores.mean()) / (scores.std(ddof=self.ddof) + self.eps)
        return with_advantages(scored, advantages.tolist())
