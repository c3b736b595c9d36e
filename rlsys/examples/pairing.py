"""Code that all builders of pairs share: their options, the rule for which two responses make a pair, and the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.errors import ConfigError
from rlsys.examples.scaling import beta_scale
from rlsys.records import PreferencePair, Response, ScoredGroup

Scored = tuple[Response, float]


def distinct(scored: ScoredGroup) -> list[Scored]:
    """Scored responses of a group, without duplicates of the same tokens.

    With duplicates, a pair would be trained once for every temperature at which one of its responses was sampled. Of several
    duplicates the response at temperature 1 is kept, because KL can be estimated on it. If there is none, the first is kept.
    """
    found: dict[bytes, Scored] = {}
    for response, score in scored.scored:
        key = response.token_ids.tobytes()
        known = found.setdefault(key, (response, score))
        if response.sampled.temperature == 1.0 != known[0].sampled.temperature:
            found[key] = (response, score)
    return list(found.values())


@dataclass(kw_only=True)
class PairOptions:
    """Base of the plug-ins that build preference pairs."""

    produces: ClassVar[type] = PreferencePair

    min_margin: float = 0.0
    """Smallest margin that makes a pair, score units; a tie never makes a pair."""
    scale_w: float = 0.5
    """w of dynamic reward scaling (`rlsys.examples.scaling`); 0 gives every pair the same beta."""
    scale_k: float = 0.5
    """k of dynamic reward scaling, per score unit."""

    def __post_init__(self) -> None:
        for name in ("min_margin", "scale_w", "scale_k"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"examples.{name} must be at least 0, got {getattr(self, name)}")

    def prefer(self, scored: ScoredGroup, one: Scored, other: Scored) -> PreferencePair | None:
        """The pair of two scored responses; the one with the higher score is chosen.

        There is no pair (`None`) for a tie, for a margin below `min_margin`, and for two responses of the same text. Such
        responses may have different tokens, but preferring a text to itself is not informative.
        """
        chosen, rejected = (one, other) if one[1] > other[1] else (other, one)
        margin = chosen[1] - rejected[1]
        if margin <= 0 or margin < self.min_margin or chosen[0].text == rejected[0].text:
            return None
        group = scored.group
        return PreferencePair(
            prompt=group.prompt,
            prompt_token_ids=group.prompt_token_ids,
            chosen=chosen[0],
            rejected=rejected[0],
            chosen_score=chosen[1],
            rejected_score=rejected[1],
            margin=margin,
            beta_scale=beta_scale(margin, self.scale_w, self.scale_k),
            round=group.round,
        )
