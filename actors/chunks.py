"""Batches of prompts for one engine call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rlsys.records import Prompt

T = TypeVar("T")

MOST_PIXEL_BYTES = 256 << 20
"""Largest size of the images in one call. The prompts of a call are one frame, of which the driver, the object store and the
actor each hold a copy."""


def chunks(items: Iterable[T], size: int, *, prompt: Callable[[T], Prompt]) -> Iterator[list[T]]:
    """Consecutive items for one engine call, each list as soon as it is complete. A list has `size` items, or fewer if their
    images would exceed `MOST_PIXEL_BYTES`.

    Args:
        prompt: function that gives the prompt of an item, whose images count for the size of the call.
    """
    chunk: list[T] = []
    held = 0
    for item in items:
        num_bytes = sum(image.pixels.nbytes for image in prompt(item).images)
        if chunk and held + num_bytes > MOST_PIXEL_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(item)
        held += num_bytes
        if len(chunk) == size:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
