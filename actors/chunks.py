"""What of a round goes into one engine call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")
_LEAST_BATCHES = 4
"""A round of fewer is not overlapped enough to be worth smaller calls."""


def chunks(items: Iterable[T], batch: int, num_items: int) -> Iterator[list[T]]:
    """`batch` items at a time. Of four batches or more the last is taken in a half and two quarters: nothing is left to
    overlap the learner's steps on the last answers with, so these are to be few.

    Args:
        num_items: how many there will be; if there are more, they come in batches.
    """
    iterator, left = iter(items), num_items
    while chunk := list(islice(iterator, _size(batch, left, num_items))):
        left -= len(chunk)
        yield chunk


def _size(batch: int, left: int, num_items: int) -> int:
    is_last = 0 < left <= batch and num_items >= _LEAST_BATCHES * batch
    return max(batch // 4, -(-left // 2)) if is_last else batch
