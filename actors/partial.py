"""What a worker hands over while it is still at work. No Ray in here."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlsys import wire

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialResult:
    """The next results of a call."""

    num_items: int
    frame: bytes
    """Their records, one item's after the other's; empty if there are none."""
    seconds: float
    """Busy ones of the worker, since it began or handed over the part before."""
    notes: tuple[str, ...] = ()
    """What a person should know of the call so far, and has not been told."""

    def records(self, kind: type[T]) -> list[T]:
        """
        Raises:
            WireError: the frame holds something else.
        """
        return wire.decode_many(self.frame, kind) if self.frame else []


def partial_results(
    ready: Iterable[Sequence[Sequence[Any]]], *, skip: int, notes: list[str] | None = None
) -> Iterator[PartialResult]:
    """Encode results as they come.

    Args:
        ready: items that are ready at once, in order; an item is a sequence of records.
        skip: items at the beginning that are not handed over, because a worker that died had done it.
        notes: filled by who makes `ready`, emptied here.
    """
    notes = [] if notes is None else notes
    begun = time.monotonic()
    for items in ready:
        wanted = items[skip:]
        skip = max(0, skip - len(items))
        if wanted:
            records = [record for item in wanted for record in item]
            frame = wire.encode_many(records) if records else b""
            told = tuple(notes)
            notes.clear()
            yield PartialResult(num_items=len(wanted), frame=frame, seconds=time.monotonic() - begun, notes=told)
            begun = time.monotonic()
