"""Where the ranks of a learner meet. Light: drivers without torch make one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rendezvous:
    """One rank's place among all."""

    rank: int
    world_size: int
    address: str
    """Host of rank 0."""
    port: int
