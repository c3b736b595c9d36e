"""Rates responses individually, for KTO (arXiv 2402.01306)."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.examples.advantages import candidate_scores
from rlsys.records import RatedResponse, ScoredGroup


@registry.examples("desirable")
@dataclass(kw_only=True)
class Desirable:
    """Rates every response as desirable if its score is above a threshold, and as undesirable if it is below.

    A response whose score is at the threshold, or nearer to it than `min_margin`, is not informative and gives no example.
    """

    produces: ClassVar[type] = RatedResponse

    threshold: float | None = None
    """Threshold on the score, score units. `null` takes the median of the group's candidates, so that prompts of any difficulty
    have good and bad responses."""
    min_margin: float = 0.0
    """Smallest distance of a score from the threshold, score units."""

    def __post_init__(self) -> None:
        if not self.min_margin >= 0:
            raise ConfigError(f"examples.min_margin must be at least 0, got {self.min_margin}")

    def __call__(self, scored: ScoredGroup) -> list[RatedResponse]:
        if not scored.scored:
            return []
        threshold = median(candidate_scores(scored)) if self.threshold is None else self.threshold
        group = scored.group
        return [
            RatedResponse(
                prompt=group.prompt,
                prompt_token_ids=group.prompt_token_ids,
                response=response,
                is_desirable=score > threshold,
                score=score,
                round=group.round,
            )
            for response, score in scored.scored
            if score != threshold and abs(score - threshold) >= self.min_margin
        ]
