"""What there is to run on: cores, memory and GPUs, within the limits of a container."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from rlsys.packing import Node

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is: one machine, or a Ray cluster as a whole."""

    num_cpus: float
    num_gpus: float
    memory_gib: float
    """Free host memory."""
    cores: tuple[int, ...] = ()
    """Core numbers this process may use, if all actors will run on this machine; else empty."""
    gpu_memory_gib: float = 0.0
    """Memory of one GPU; 0 if unknown."""
    nodes: tuple[Node, ...] = ()
    """Of a cluster: its machines; empty is one machine with all of the above."""


def may_have_gpus() -> bool:
    """Whether asking torch for GPUs can find any: there is a device of a driver that it knows."""
    devices = Path("/dev")
    return any((devices / name).exists() for name in ("nvidiactl", "kfd", "dxg"))


def this_machine(*, num_gpus: float = 0.0, gpu_memory_gib: float = 0.0) -> Machine:
    """The machine this process runs on, within its CPU affinity and the limits of its container."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    limits = container_limits()
    with open("/proc/meminfo") as lines:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    num_cpus = min(len(cores), max(1, math.floor(limits.num_cpus))) if limits.num_cpus else len(cores)
    return Machine(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory_gib=min(kilobytes["MemAvailable"] * 1024 / GIB, limits.memory_gib),
        # A quota is time on any core: pinned to a few, this container would queue behind others that did the same.
        cores=cores if num_cpus == len(cores) else (),
        gpu_memory_gib=gpu_memory_gib,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a container may use of its machine."""

    num_cpus: float | None = None
    """Cores' worth of time; `None` is no limit."""
    memory_gib: float = math.inf
    """What is left of its memory."""


def container_limits(root: Path = Path("/sys/fs/cgroup")) -> Limits:
    """The limits of this process's cgroup (version 2, as containers see it); none where there are no such files."""

    def read(name: str) -> list[str]:
        try:
            return (root / name).read_text().split()
        except OSError:
            return []

    quota, used, most = read("cpu.max"), read("memory.current"), read("memory.max")
    statistics = read("memory.stat")
    cache = dict(zip(statistics[::2], statistics[1::2], strict=False)).get("inactive_file", "0")
    limited = used and most and most != ["max"]
    return Limits(
        num_cpus=int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0] != "max" else None,
        memory_gib=(int(most[0]) - int(used[0]) + int(cache)) / GIB if limited else math.inf,
    )
