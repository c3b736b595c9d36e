"""Turns the best response to each prompt into a demonstration (RAFT, arXiv 2304.06767)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys import registry
from rlsys.records import Demonstration, ScoredGroup


@registry.examples("rejection_sampling")
@dataclass(kw_only=True)
class RejectionSampling:
    """Builds at most one demonstration per prompt, from the response of the highest score.

    Among responses of equal score the one that appeared first is taken. Objective `sft` trains on the demonstrations.
    """

    produces: ClassVar[type] = Demonstration

    min_score: float | None = None
    """Smallest score of a demonstration, score units; `null` is no limit."""

    def __call__(self, scored: ScoredGroup) -> list[Demonstration]:
        if not scored.scored:
            return []
        response, score = max(scored.scored, key=lambda one: one[1])
        if self.min_score is not None and score < self.min_score:
            return []
        group = scored.group
        return [
            Demonstration(
                prompt=group.prompt,
                prompt_token_ids=group.prompt_token_ids,
                response=response,
                score=score,
                round=group.round,
            )
        ]
