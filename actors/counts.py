"""The counters of a stage per round, and the notes that it shows to the user. This module does not use Ray."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MOST_TOLD = 5
"""Number of notes that a stage shows during a run."""


class Counts:
    """Counts busy seconds, dead workers and missing responses to held-out prompts.

    A failure outside of a round (in an evaluation or a weight update) is assigned to the round that is counted next, because
    the evaluation or update was done for that round.
    """

    def __init__(self, name: str = "") -> None:
        """
        Args:
            name: name of the stage, which is shown before its notes.
        """
        self._name, self._num_told = name, 0
        self.round: int | None = None
        """The round that is being processed; `None` outside of a round."""
        self.seconds: Counter[int] = Counter()
        """Busy seconds of all workers, by round."""
        self._failed: Counter[int | None] = Counter()
        self._held_out: Counter[int | None] = Counter()

    @contextmanager
    def working_on(self, round: int | None) -> Iterator[None]:
        """Inside the `with` block, failures are assigned to `round`; `None` assigns them to the round that is counted next."""
        self.round = round
        try:
            yield
        finally:
            self.round = None

    def death(self, name: str) -> None:
        """Count the death of a worker."""
        self._failed[self.round] += 1

    def missed(self, number: int) -> None:
        """Count missing responses to held-out prompts."""
        self._held_out[None] += number

    def tell(self, notes: Sequence[str]) -> None:
        """Show notes to the user, but only the first `MOST_TOLD` of a run."""
        for note in notes:
            self._num_told += 1
            if self._num_told <= MOST_TOLD:
                print(f"{self._name}: {note}", file=sys.stderr, flush=True)
            elif self._num_told == MOST_TOLD + 1:
                print(f"{self._name}: more like this is counted, and not shown", file=sys.stderr, flush=True)

    def of(self, round: int, num_workers: int) -> dict[str, float]:
        """The counters of a round: `seconds` (mean over workers), `failed_workers` and `failed_held_out`."""
        for counter in (self._failed, self._held_out):
            counter[round] += counter.pop(None, 0)
        return {
            "seconds": self.seconds[round] / num_workers,
            "failed_workers": float(self._failed[round]),
            "failed_held_out": float(self._held_out[round]),
        }
