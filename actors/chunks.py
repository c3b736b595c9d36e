"""What goes into one engine call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rlsys.records import Prompt

T = TypeVar("T")

MOST_PIXEL_BYTES = 256 << 20
"""Of the images in a call: its prompts are one frame, of which driver, object store and actor hold a copy each."""


def chunks(items: Iterable[T], size: int, *, prompt: Callable[[T], Prompt]) -> Iterator[list[T]]:
    """Neighbours for one engine call, as soon as they are there: `size` of them, or fewer with `MOST_PIXEL_BYTES`.

    Args:
        prompt: of an item; its images go with it.
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
