"""What every builder of pairs shares: its options, when one response may stand against another, and the record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.errors import ConfigError
from rlsys.examples.scaling import beta_scale
from rlsys.records import PreferencePair, Response, ScoredGroup

Scored = tuple[Response, float]


def distinct(scored: ScoredGroup) -> list[Scored]:
    """Scored responses of a group, those of the same tokens once: else a pair would be trained once for every temperature
    that gave one of its responses. The one at temperature 1 stays, on which KL can be estimated, else the first.
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
    """Smallest margin of a pair, score units; a tie never makes a pair."""
    scale_w: float = 0.5
    """w of dynamic reward scaling (`rlsys.examples.scaling`); 0 gives every pair the same beta."""
    scale_k: float = 0.5
    """k of dynamic reward scaling, per score unit."""

    def __post_init__(self) -> None:
        for name in ("min_margin", "scale_w", "scale_k"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"examples.{name} must be at least 0, got {getattr(self, name)}")

    def prefer(self, scored: ScoredGroup, one: Scored, other: Scored) -> PreferencePair | None:
        """The pair of two scored responses, the higher score chosen.

        `None` for a tie, for a margin below `min_margin`, and for responses that read the same (of different tokens):
        preferring a text to itself says nothing.
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
