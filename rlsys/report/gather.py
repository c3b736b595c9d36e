"""The journal data that the report shows: scores and margins of every round, and a few examples of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from rlsys.records import PreferencePair, ScoredGroup


class Records(Protocol):
    """The methods of the journal that the report uses."""

    def rounds(self) -> Iterable[int]: ...

    def read(self, round: int, record: type[Any]) -> Iterator[Any]: ...


@dataclass(frozen=True, kw_only=True)
class Example:
    """One prompt with its responses, critiques, scores and pairs."""

    scored: ScoredGroup
    pairs: tuple[PreferencePair, ...]


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """The data of one round that the report shows."""

    round: int
    scores: np.ndarray
    """float64 [responses with a score], score units."""
    margins: np.ndarray
    """float64 [pairs], score units."""
    examples: tuple[Example, ...]


def gather(journal: Records, *, examples: int) -> list[RoundView]:
    """Views of all rounds in the journal. The examples are divided evenly between the rounds; the first and the last round are
    served first.
    """
    rounds = sorted(journal.rounds())
    return [_view(journal, round, share) for round, share in zip(rounds, shares(len(rounds), examples), strict=True)]


def shares(num_rounds: int, examples: int) -> list[int]:
    """How many of the examples each round gets."""
    given = [examples // num_rounds] * num_rounds if num_rounds else []
    order = sorted(range(num_rounds), key=lambda index: min(index, num_rounds - 1 - index))
    for index in order[: examples - sum(given)]:
        given[index] += 1
    return given


def _view(journal: Records, round: int, share: int) -> RoundView:
    # Two passes are made, because the images of a whole round need not fit in memory; those of the examples do.
    margins, paired = [], set()
    for pair in journal.read(round, PreferencePair):
        margins.append(pair.margin)
        paired.add(pair.prompt.id)
    scores, with_pairs, without = [], [], []
    for position, scored in enumerate(journal.read(round, ScoredGroup)):
        scores += [score for _, score in scored.scored]
        (with_pairs if scored.group.prompt.id in paired else without).append(position)
    chosen = _spread(with_pairs, share)
    chosen |= _spread(without, share - len(chosen))
    return RoundView(
        round=round,
        scores=np.array(scores, dtype=np.float64),
        margins=np.array(margins, dtype=np.float64),
        examples=_examples(journal, round, chosen),
    )


def _spread(positions: list[int], count: int) -> set[int]:
    """`count` of the positions, evenly spaced from the first to the last."""
    count = min(count, len(positions))
    return {positions[int(place)] for place in np.linspace(0, len(positions) - 1, count).round()} if count else set()


def _examples(journal: Records, round: int, positions: set[int]) -> tuple[Example, ...]:
    if not positions:
        return ()
    groups = [scored for place, scored in enumerate(journal.read(round, ScoredGroup)) if place in positions]
    pairs: dict[str, list[PreferencePair]] = {scored.group.prompt.id: [] for scored in groups}
    for pair in journal.read(round, PreferencePair):
        if pair.prompt.id in pairs:
            pairs[pair.prompt.id].append(pair)
    return tuple(Example(scored=scored, pairs=tuple(pairs[scored.group.prompt.id])) for scored in groups)
