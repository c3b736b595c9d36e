"""Checks that every actor fits on some machine: the sums over a cluster may suffice although no single machine has room.

Ray starts an actor on one node, gives whole GPUs to actors that ask for one or more, and never splits a fraction over two GPUs.
This module tries the actors in decreasing order of size, each on the first node with room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

EPSILON = 1e-6
"""Tolerance of comparisons: Ray counts resources in steps of 1/10000, and sums of such fractions are not exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """The free resources of one machine."""

    num_cpus: float
    num_gpus: float = 0.0
    memory_gib: float = float("inf")
    """Host memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """The resources that one actor needs."""

    name: str
    cpus: float
    gpus: float
    """A whole number of GPUs, or a fraction of one GPU."""
    memory_gib: float = 0.0
    gpu_memory_gib: float = 0.0
    """GPU memory per GPU."""


@dataclass(slots=True)
class _Gpu:
    share: float
    memory_gib: float

    def has(self, share: float, memory_gib: float) -> bool:
        return self.share + EPSILON >= share and self.memory_gib + EPSILON >= memory_gib

    def take(self, share: float, memory_gib: float) -> None:
        self.share -= share
        self.memory_gib -= memory_gib


class _Room:
    """The remaining resources of a node."""

    def __init__(self, node: Node, gpu_memory_gib: float) -> None:
        self._cpus, self._memory_gib = node.num_cpus, node.memory_gib
        self._gpus = [_Gpu(1.0, gpu_memory_gib) for _ in range(int(node.num_gpus + EPSILON))]

    def take(self, need: Need) -> bool:
        """Reserve the resources of an actor. Returns `False`, and reserves nothing, if the node has no room."""
        whole = int(need.gpus + EPSILON)
        share = 1.0 if whole else need.gpus
        fitting = [gpu for gpu in self._gpus if gpu.has(share, need.gpu_memory_gib)]
        number = whole or (1 if need.gpus else 0)
        if self._cpus + EPSILON < need.cpus or self._memory_gib < need.memory_gib or len(fitting) < number:
            return False
        self._cpus -= need.cpus
        self._memory_gib -= need.memory_gib
        for gpu in fitting[:number]:
            gpu.take(share, need.gpu_memory_gib)
        return True


def without_room(needs: Sequence[Need], nodes: Sequence[Node], *, gpu_memory_gib: float = 0.0) -> list[Need]:
    """The actors for which no node has room left.

    Args:
        gpu_memory_gib: memory of one GPU; 0 if it is unknown, in which case GPU memory is not checked.
    """
    rooms = [_Room(node, gpu_memory_gib or float("inf")) for node in nodes]
    largest_first = sorted(needs, key=lambda need: (need.gpus, need.cpus, need.memory_gib), reverse=True)
    return [need for need in largest_first if not any(room.take(need) for room in rooms)]


def equal_share(nodes: Sequence[Node], number: int) -> float:
    """The largest number of CPUs that `number` actors can have if all get the same; infinite if no nodes are given."""
    shares = {node.num_cpus / each for node in nodes for each in range(1, number + 1)}
    fitting = [share for share in shares if share and sum(_times(node, share) for node in nodes) >= number]
    return max(fitting, default=float("inf"))


def _times(node: Node, cpus: float) -> int:
    return int(node.num_cpus / cpus + EPSILON)
