"""Reusable host memory for the buckets of weight updates."""

from __future__ import annotations

import sys

import numpy as np

from rlsys.common.lazy import torch

MOST = 4
"""Largest number of pieces that are kept."""
_UNUSED = 3
"""Reference count of an unused piece: the references of the list, of the loop variable and of `sys.getrefcount` itself."""


class HostMemory:
    """Pieces of host memory, each of which is reused once no tensor views it any more.

    Allocating memory costs more than a copy: the system clears new memory and maps it page by page at the first access.
    """

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def take(self, num_bytes: int) -> torch.Tensor:
        """A tensor uint8 [num_bytes] with arbitrary content. The caller may keep the tensor and views of it for any time."""
        for piece in self._pieces:
            # A tensor made by `torch.from_numpy` holds a reference to its array as long as any view of the tensor exists.
            if piece.nbytes >= num_bytes and sys.getrefcount(piece) == _UNUSED:
                return torch.from_numpy(piece)[:num_bytes]
        fresh = np.empty(num_bytes, np.uint8)
        self._pieces = [*self._pieces, fresh][-MOST:]
        return torch.from_numpy(fresh)
