"""Scores in standard deviations from the group's mean (GRPO: DeepSeekMath, arXiv 2402.03300, section 4.1.2)."""

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
    """Builds one example per candidate with A_i = (r_i - mean) / (std + eps) over the group's candidates. A group of fewer
    than two candidates with a score gives none; one of equal scores gives advantages of 0, which only the divergence term of
    an objective then acts on.
    """

    produces: ClassVar[type] = ScoredResponse

    eps: float = 1e-5
    """Added to the standard deviation, score units: it bounds advantages where scores hardly differ."""
    ddof: int = 0
    """Degrees of freedom that the standard deviation takes off: 0 is that of the population, 1 that of a sample."""

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
