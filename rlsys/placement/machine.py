"""What there is to run on: cores, memory and GPUs, within the limits of a container."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlsys.placement.packing import Node

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


def container_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """The smallest limits of this process's cgroups and of those above them, in version 2 and version 1; none where there are
    no such files.
    """
    found = [_limits_2(folder) for folder in _upwards(root, _path_of(own, ""))]
    found += [_limits_1_cpu(folder) for folder in _upwards(root / "cpu", _path_of(own, "cpu"))]
    found += [_limits_1_memory(folder) for folder in _upwards(root / "memory", _path_of(own, "memory"))]
    return Limits(
        num_cpus=min((one.num_cpus for one in found if one.num_cpus), default=None),
        memory_gib=min(one.memory_gib for one in found),
    )


def _path_of(own: Path, controller: str) -> str:
    """Of this process's group below the mounted ones; in a container perhaps that of the host, which is then not there."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return ""
    return next((path for _, controllers, path in lines if controller in controllers.split(",")), "").strip("/")


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path
    return [folder, *(above for above in folder.parents if above.is_relative_to(root))]


def _limits_2(folder: Path) -> Limits:
    quota, used, most = (_words(folder / name) for name in ("cpu.max", "memory.current", "memory.max"))
    limited = used and most and most != ["max"]
    return Limits(
        num_cpus=int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0] != "max" else None,
        memory_gib=_left(most, used, _words(folder / "memory.stat"), "inactive_file") if limited else math.inf,
    )


def _limits_1_cpu(folder: Path) -> Limits:
    quota, period = (_words(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return Limits(num_cpus=int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None)


def _limits_1_memory(folder: Path) -> Limits:
    used, most = (_words(folder / f"memory.{name}_in_bytes") for name in ("usage", "limit"))
    # No limit is a number, too: more than any machine has.
    left = _left(most, used, _words(folder / "memory.stat"), "total_inactive_file") if used and most else math.inf
    return Limits(memory_gib=left)


def _left(most: Sequence[str], used: Sequence[str], statistics: Sequence[str], cache: str) -> float:
    """GiB below a limit; what files are cached in is given back when it is needed."""
    cached = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(cache, "0")
    return (int(most[0]) - int(used[0]) + int(cached)) / GIB


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
