"""The available cores, memory and GPUs, within the limits of a container."""

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
    """The resources of one machine, or of a Ray cluster as a whole."""

    num_cpus: float
    num_gpus: float
    memory_gib: float
    """Free host memory."""
    cores: tuple[int, ...] = ()
    """Numbers of the cores that this process may use, if all actors will run on this machine; otherwise empty."""
    gpu_memory_gib: float = 0.0
    """Memory of one GPU; 0 if unknown."""
    nodes: tuple[Node, ...] = ()
    """The machines of a cluster; empty for one machine with all of the resources above."""


def may_have_gpus() -> bool:
    """Whether torch may find a GPU: the device file of a driver that torch supports exists."""
    devices = Path("/dev")
    return any((devices / name).exists() for name in ("nvidiactl", "kfd", "dxg"))


def this_machine(*, num_gpus: float = 0.0, gpu_memory_gib: float = 0.0) -> Machine:
    """The machine that this process runs on, within its CPU affinity and the limits of its container."""
    cores = tuple(sorted(os.sched_getaffinity(0)))
    limits = container_limits()
    with open("/proc/meminfo") as lines:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    num_cpus = min(len(cores), max(1, math.floor(limits.num_cpus))) if limits.num_cpus else len(cores)
    return Machine(
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        memory_gib=min(kilobytes["MemAvailable"] * 1024 / GIB, limits.memory_gib),
        # A CPU quota is time on any core. If this container pinned its processes to a few cores, they would queue behind those
        # of other containers that pin to the same cores.
        cores=cores if num_cpus == len(cores) else (),
        gpu_memory_gib=gpu_memory_gib,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The resources of its machine that a container may use."""

    num_cpus: float | None = None
    """CPU time as a number of cores; `None` for no limit."""
    memory_gib: float = math.inf
    """Memory that is left below the limit."""


def container_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Limits:
    """The smallest limits of this process's cgroups and of all groups above them, in cgroup versions 2 and 1. There is no limit
    where the files do not exist.
    """
    found = [_limits_2(folder) for folder in _upwards(root, _path_of(own, ""))]
    found += [_limits_1_cpu(folder) for folder in _upwards(root / "cpu", _path_of(own, "cpu"))]
    found += [_limits_1_memory(folder) for folder in _upwards(root / "memory", _path_of(own, "memory"))]
    return Limits(
        num_cpus=min((one.num_cpus for one in found if one.num_cpus), default=None),
        memory_gib=min(one.memory_gib for one in found),
    )


def _path_of(own: Path, controller: str) -> str:
    """Path of this process's cgroup below the mounted hierarchy. In a container this may be the path on the host, which then
    does not exist below the mount."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return ""
    return next((path for _, controllers, path in lines if controller in controllers.split(",")), "").strip("/")


def _upwards(root: Path, path: str) -> list[Path]:
    folder = root / path
    return [folder, *(above for above in folder.parents if above.is_relative_to(root))]


def _limits_2(folder: Path) -> Limits:
    quota, used, most = (_fields(folder / name) for name in ("cpu.max", "memory.current", "memory.max"))
    limited = used and most and most != ["max"]
    return Limits(
        num_cpus=int(quota[0]) / int(quota[1]) if len(quota) == 2 and quota[0] != "max" else None,
        memory_gib=_left(most, used, _fields(folder / "memory.stat"), "inactive_file") if limited else math.inf,
    )


def _limits_1_cpu(folder: Path) -> Limits:
    quota, period = (_fields(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return Limits(num_cpus=int(quota[0]) / int(period[0]) if quota and period and int(quota[0]) > 0 else None)


def _limits_1_memory(folder: Path) -> Limits:
    used, most = (_fields(folder / f"memory.{name}_in_bytes") for name in ("usage", "limit"))
    # cgroup version 1 writes "no limit" as a number that is larger than the memory of any machine.
    left = _left(most, used, _fields(folder / "memory.stat"), "total_inactive_file") if used and most else math.inf
    return Limits(memory_gib=left)


def _left(most: Sequence[str], used: Sequence[str], statistics: Sequence[str], cache: str) -> float:
    """GiB that are left below a memory limit. The file cache counts as free, because the kernel reclaims it on demand."""
    cached = dict(zip(statistics[::2], statistics[1::2], strict=False)).get(cache, "0")
    return (int(most[0]) - int(used[0]) + int(cached)) / GIB


def _fields(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
