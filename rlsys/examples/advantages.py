"""Functions that builders of scored responses share: the scores of all candidates of a group, and the records."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.records import ScoredGroup, ScoredResponse


def candidate_scores(scored: ScoredGroup) -> list[float]:
    """Scores of a group's candidates in the order of its responses. Each response counts as often as it was sampled."""
    return [score for response, score in scored.scored for _ in range(response.count)]


def with_advantages(scored: ScoredGroup, advantages: Sequence[float]) -> list[ScoredResponse]:
    """Make one example for every candidate.

    Args:
        advantages: one advantage per candidate, in the order of `candidate_scores`.
    """
    group = scored.group
    candidates = [(response, score) for response, score in scored.scored for _ in range(response.count)]
    return [
        ScoredResponse(
            prompt=group.prompt,
            prompt_token_ids=group.prompt_token_ids,
            response=response,
            score=score,
            advantage=advantage,
            round=group.round,
        )
        for (response, score), advantage in zip(candidates, advantages, strict=True)
    ]
