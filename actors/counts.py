"""What a stage counts, per round, and what it tells a person. No Ray in here."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

MOST_TOLD = 5
"""Notes of a stage that are shown in a run."""


class Counts:
    """Busy seconds, dead workers and held-out answers that did not come.

    What fails while no round is worked on (in an evaluation or a weight update) belongs to the round that is counted next:
    that is the one it was done for.
    """

    def __init__(self, name: str = "") -> None:
        """
        Args:
            name: of the stage.
        """
        self._name, self._num_told = name, 0
        self.round: int | None = None
        """The round that is worked on."""
        self.seconds: Counter[int] = Counter()
        self._failed: Counter[int | None] = Counter()
        self._held_out: Counter[int | None] = Counter()

    @contextmanager
    def working_on(self, round: int | None) -> Iterator[None]:
        """Inside, what fails belongs to `round`; with `None` to none in particular."""
        self.round = round
        try:
            yield
        finally:
            self.round = None

    def death(self, name: str) -> None:
        """A worker died."""
        self._failed[self.round] += 1

    def missed(self, number: int) -> None:
        """Held-out answers did not come."""
        self._held_out[None] += number

    def tell(self, notes: Sequence[str]) -> None:
        """Show what a person should know, the first `MOST_TOLD` of it."""
        for note in notes:
            self._num_told += 1
            if self._num_told <= MOST_TOLD:
                print(f"{self._name}: {note}", file=sys.stderr, flush=True)
            elif self._num_told == MOST_TOLD + 1:
                print(f"{self._name}: more like this is counted, and not shown", file=sys.stderr, flush=True)

    def of(self, round: int, num_workers: int) -> dict[str, float]:
        """`seconds` (mean over workers), `failed_workers` and `failed_held_out`."""
        for counter in (self._failed, self._held_out):
            counter[round] += counter.pop(None, 0)
        return {
            "seconds": self.seconds[round] / num_workers,
            "failed_workers": float(self._failed[round]),
            "failed_held_out": float(self._held_out[round]),
        }
