"""Partial results, which a worker yields while its call is still in progress. This module does not use Ray."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rlsys import wire

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialResult:
    """The next items of a call's result."""

    num_items: int
    frame: bytes
    """The records of the items, in order; empty if the items have no records."""
    seconds: float
    """Busy seconds of the worker since it began the call or yielded the previous partial result."""
    notes: tuple[str, ...] = ()
    """Notes for the user that are new since the previous partial result."""

    def records(self, kind: type[T]) -> list[T]:
        """The records of all items.

        Raises:
            WireError: the frame holds records of another class.
        """
        return wire.decode_many(self.frame, kind) if self.frame else []


def partial_results(
    ready: Iterable[Sequence[Sequence[Any]]], *, skip: int, notes: list[str] | None = None
) -> Iterator[PartialResult]:
    """Encode the items of a call as they become ready.

    Args:
        ready: lists of items that become ready at the same time, in order. An item is a sequence of records.
        skip: number of leading items that are not yielded, because a worker that died has already delivered them.
        notes: list to which the producer of `ready` appends notes; this function empties it.
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
