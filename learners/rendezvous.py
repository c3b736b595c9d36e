"""The meeting point of a learner's ranks. This module imports no torch, because drivers without torch use it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """One rank's place among all ranks, and the address at which they meet."""

    rank: int
    world_size: int
    address: str
    """Host of rank 0."""
    port: int
