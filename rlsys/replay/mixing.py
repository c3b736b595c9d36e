"""Base of replays that add pairs of a finite collection.

It decides how many pairs are added, which ones, and at which places among the round's own examples.
"""

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

    The collection is passed through from its beginning, again and again. Every round continues where the round before it ended,
    which is known from the reports in the journal. A resumed run therefore adds the same pairs that it would have added without
    the interruption.
    """

    produces: ClassVar[type] = PreferencePair

    share: float = 0.5
    """Share of added pairs among all examples that a round trains on, in [0, 1). After each of the round's own examples, as
    many pairs are added as the share calls for (0.25 is o o o x o o o x). A ramp may change the share from round to round."""
    minimum: int = 0
    """Smallest number of added pairs per round. Pairs that are still missing after the round's own examples come at the end. A
    round without examples of its own trains on these pairs alone, or on nothing if the minimum is 0. A minimum as large as the
    collection adds the whole collection every round."""
    shuffle: bool = True
    """Whether every pass through the collection has a random order of its own, drawn from `seed`; `false` keeps the order of
    the file."""
    seed: int = 0
    margin: float = 1.0
    """Margin of pairs that have none in the data, > 0. The scores of such a pair are this number and 0, and its beta is the
    objective's, unscaled."""

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
        """The single name under which the pairs are counted."""

    @abstractmethod
    def pairs(self, past: Past) -> Sequence[PreferencePair]:
        """The collection, in a fixed order. Its entries are made on access."""

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples, and between them pairs of the collection."""
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
        """The pairs of the collection from a place on, pass after pass. It ends only if the collection is empty."""
        order: Sequence[int] = range(len(pairs))
        drawn = None
        while pairs:
            number, position = divmod(place, len(pairs))
            if self.shuffle and number != drawn:
                order, drawn = self._order(number, len(pairs)), number
            yield Replayed(source=self.sources[0], example=pairs[int(order[position])])
            place += 1

    def _order(self, number: int, count: int) -> np.ndarray:
        """The random order of pass `number`."""
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
    """A pair of which only the texts are known. No engine of the run sampled its responses, and the learner tokenizes them."""
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
