"""What replays share that bring pairs of a finite collection: how many come, which, and where among the round's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from rlsys.errors import ConfigError
from rlsys.journal import Past
from rlsys.records import NO_ROUND, PreferencePair, Prompt, Replayed, Response, RoundPlan
from rlsys.seeding import generator


@dataclass(kw_only=True)
class MixedPairs(ABC):
    """Base of replays that spread pairs evenly among the round's own examples.

    The collection is gone through from its beginning, again and again: every round goes on where the one before it ended, which
    the reports in the journal say. So a resumed run brings the pairs that it would have brought.
    """

    produces: ClassVar[type] = PreferencePair

    share: float = 0.5
    """Of everything that a round trains on, the part that is brought, in [0, 1): after every k examples of its own, as many
    have come as keep the share (0.25 is o o o x o o o x). A ramp may change it from round to round."""
    minimum: int = 0
    """Fewest pairs a round; those that its own examples have not called for come after them. A round without examples of its
    own has these alone; with 0 it trains on nothing. A number as large as the collection brings all of it every round."""
    shuffle: bool = True
    """Whether every pass through the collection has an order of its own, drawn from `seed`; `false` keeps that of the file."""
    seed: int = 0
    margin: float = 1.0
    """Margin of pairs that come without one, > 0: their scores are this and 0. Their beta is the objective's, unscaled."""

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ConfigError(f"replay.share must be in [0, 1), got {self.share}")
        if self.minimum < 0:
            raise ConfigError(f"replay.minimum must be at least 0, got {self.minimum}")
        if not self.margin > 0:
            raise ConfigError(f"replay.margin must be > 0, got {self.margin}")

    @property
    @abstractmethod
    def sources(self) -> tuple[str]:
        """The one name under which the pairs are counted."""

    @abstractmethod
    def pairs(self, past: Past) -> Sequence[PreferencePair]:
        """The collection, in a fixed order; an entry is made when it is asked for."""

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples, and pairs of the collection after those that call for them."""
        others = self._from(past.replayed(self.sources[0]), self.pairs(past))
        share = Fraction(str(self.share))  # the decimal as written: 0.1 is 1/10
        brought = 0
        for own, example in enumerate(examples, start=1):
            yield example
            due = int(own * share / (1 - share))
            for pair in _first(due - brought, others):
                yield pair
                brought += 1
        yield from _first(self.minimum - brought, others)

    def _from(self, place: int, pairs: Sequence[PreferencePair]) -> Iterator[Replayed]:
        """The collection from a place on, pass after pass; ends only if there is nothing in it."""
        order: Sequence[int] = range(len(pairs))
        drawn = None
        while pairs:
            number, position = divmod(place, len(pairs))
            if self.shuffle and number != drawn:
                order, drawn = self._order(number, len(pairs)), number
            yield Replayed(source=self.sources[0], example=pairs[int(order[position])])
            place += 1

    def _order(self, number: int, count: int) -> np.ndarray:
        """Of pass `number`."""
        return generator(self.seed, "replay", self.sources[0], number).permutation(count)


def _first(count: int, pairs: Iterator[Replayed]) -> Iterator[Replayed]:
    for _ in range(count):
        pair = next(pairs, None)
        if pair is None:
            return
        yield pair


def text_pair(
    prompt: Prompt, chosen: str, rejected: str, *, scores: tuple[float, float], beta_scale: float
) -> PreferencePair:
    """A pair of which only the texts are known: no engine of the run sampled it, and the learner tokenizes it."""
    nothing = np.zeros(0, dtype=np.int32)
    return PreferencePair(
        prompt=prompt,
        prompt_token_ids=nothing,
        chosen=Response(text=chosen, token_ids=nothing),
        rejected=Response(text=rejected, token_ids=nothing),
        chosen_score=scores[0],
        rejected_score=scores[1],
        margin=scores[0] - scores[1],
        beta_scale=beta_scale,
        round=NO_ROUND,
    )
