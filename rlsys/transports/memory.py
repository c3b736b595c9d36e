"""Host memory for one bucket after the other, without asking the system for it each time."""

from __future__ import annotations

import sys

import numpy as np

from rlsys.common.lazy import torch

MOST = 4
"""Pieces that are kept."""
_UNUSED = 3
"""References to a piece that nothing uses: the list's, the loop's and that of `sys.getrefcount` itself."""


class HostMemory:
    """Pieces of host memory that are handed out again once no tensor views them any more.

    Fresh memory costs more than a copy: the system clears it and maps it page by page when it is first touched.
    """

    def __init__(self) -> None:
        self._pieces: list[np.ndarray] = []

    def take(self, num_bytes: int) -> torch.Tensor:
        """uint8 [num_bytes], of any content; it and every view of it may be kept as long as they are needed."""
        for piece in self._pieces:
            # A tensor made by `torch.from_numpy` holds its array as long as any view of it is there.
            if piece.nbytes >= num_bytes and sys.getrefcount(piece) == _UNUSED:
                return torch.from_numpy(piece)[:num_bytes]
        fresh = np.empty(num_bytes, np.uint8)
        self._pieces = [*self._pieces, fresh][-MOST:]
        return torch.from_numpy(fresh)
