"""Named child seeds: every random choice of a run is derived from one root seed and a path of names."""

from __future__ import annotations

import hashlib

import numpy as np


def child_seed(root: int, *path: str | int) -> int:
    """A 30-bit seed for the choice named by `path`. The seed does not depend on the order in which choices are made.

    The seed has 30 bits because engines take signed 32-bit seeds and add the candidate's number to the seed.
    """
    text = "/".join([str(root), *map(str, path)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little") & 0x3FFFFFFF


def generator(root: int, *path: str | int) -> np.random.Generator:
    """A NumPy generator for the choice named by `path`."""
    return np.random.default_rng(child_seed(root, *path))
