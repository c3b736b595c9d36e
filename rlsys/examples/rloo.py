"""Advantages of each candidate over the mean of the other candidates (RLOO, arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys import registry
from rlsys.examples.advantages import candidate_scores, with_advantages
from rlsys.records import ScoredGroup, ScoredResponse


@registry.examples("rloo")
@dataclass(kw_only=True)
class RLOO:
    """Builds one example per candidate, with advantage A_i = r_i - mean of the other candidates' scores.

    A group with fewer than two scored candidates gives no example.
    """

    produces: ClassVar[type] = ScoredResponse

    def __call__(self, scored: ScoredGroup) -> list[ScoredResponse]:
        scores = candidate_scores(scored)
        if len(scores) < 2:
            return []
        total = sum(scores)
        return with_advantages(scored, [score - (total - score) / (len(scores) - 1) for score in scores])
