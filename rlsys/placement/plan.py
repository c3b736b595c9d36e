"""The placement of processes on cores and GPUs, which is decided before any process starts.

Ray counts CPUs but does not pin processes, and an actor that asks for more than is left waits forever without a message.
Therefore a run adds up what its roles need, reports what does not fit, and gives every process on a CPU machine its own cores
and thread count.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rlsys.errors import ResourceError
from rlsys.placement.machine import Machine
from rlsys.placement.packing import Need, Node, equal_share, without_room

STEP_BACK = 10
"""Niceness that an actor gets for every later role on the same cores: while such a role uses a whole core, the actor gets about
a tenth of it."""
LEAST_SHARE = 0.01
"""Smallest share of a core for an actor without an explicit number of cores. If less is left, the run does not fit."""
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
"""Environment of an actor without a GPU. Ray does not hide the GPUs from an actor that books none, and torch would use the
first."""
MOST_NICE = 19
"""The largest niceness that Linux allows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The resources of one worker process."""

    num_cpus: float = 1.0
    """CPUs booked with Ray; a fraction if several processes share a core."""
    num_gpus: float = 0.0
    """GPUs booked with Ray; a fraction if several roles share a GPU."""
    cores: tuple[int, ...] = ()
    """Cores that the process is pinned to; empty leaves it unpinned (Ray chooses a node whose cores are not known here)."""
    num_threads: int = 1
    start_cores: tuple[int, ...] = ()
    """Cores that the process is pinned to until it has started; empty means `cores`."""
    niceness: int = 0
    """Added to the niceness of the process once it has started, so that it yields to other processes on the same cores."""
    env: dict[str, str] = field(default_factory=dict)
    """Environment variables that are set in the worker before torch and the engine are imported."""

    @property
    def environment(self) -> dict[str, str]:
        """`env` and the thread counts, which numeric libraries read when they are first imported."""
        threads = str(self.num_threads)
        return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, **self.env}

    @property
    def starts_on(self) -> tuple[int, ...]:
        """Cores that the process is pinned to while it starts; empty if it is not pinned."""
        return self.start_cores or self.cores

    def apply(self) -> None:
        """Set the environment of this process. Pin it, and the threads it will start, to the cores of its start."""
        # Ray's `runtime_env` would start a new process instead of using one that Ray has started in advance.
        os.environ.update(self.environment)
        if self.cores:
            os.sched_setaffinity(0, self.starts_on)

    def settle(self) -> None:
        """Move all threads of this process to its `cores` and `niceness`. Called once the process has started."""
        for thread in map(int, os.listdir("/proc/self/task")):
            with suppress(ProcessLookupError):  # the thread has ended in the meantime
                if self.start_cores:
                    os.sched_setaffinity(thread, self.cores)
                if self.niceness:
                    before = os.getpriority(os.PRIO_PROCESS, thread)  # Ray does not start its workers at niceness 0
                    os.setpriority(os.PRIO_PROCESS, thread, min(MOST_NICE, before + self.niceness))


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """The resources that the actors of one kind need."""

    name: str
    num_actors: int
    cores: float
    """Cores per actor; 0 lets `place` divide the free cores."""
    gpus: float
    """GPUs per actor (the tensor-parallel size, or a fraction of a shared GPU)."""
    memory_gib: float
    """Estimated host memory per actor."""
    gpu_memory_gib: float = 0.0
    """Estimated memory on every GPU of an actor."""
    env: dict[str, str] = field(default_factory=dict)


def shortages(roles: Sequence[Role], machine: Machine) -> list[str]:
    """One sentence for every resource that does not suffice; empty if everything fits."""
    return _sums_that_do_not_fit(roles, machine) or _without_room(roles, machine)


def _without_room(roles: Sequence[Role], machine: Machine) -> list[str]:
    whole = Node(num_cpus=machine.num_cpus, num_gpus=machine.num_gpus, memory_gib=machine.memory_gib)
    nodes = machine.nodes or (whole,)
    needs = [
        Need(
            name=role.name,
            cpus=role.cores,
            gpus=role.gpus,
            memory_gib=role.memory_gib,
            gpu_memory_gib=role.gpu_memory_gib,
        )
        for role in roles
        for _ in range(role.num_actors)
    ]
    there = ", ".join(f"{node.num_cpus:g} cores and {node.num_gpus:g} GPUs" for node in nodes)
    left = Counter(without_room(needs, nodes, gpu_memory_gib=machine.gpu_memory_gib))
    return [
        f"machines: {number} x {need.name} ({need.cpus:g} cores, {need.gpus:g} GPUs of {need.gpu_memory_gib:.1f} GiB, "
        f"{need.memory_gib:.1f} GiB of host memory) find no room beside the others; there are machines of {there}"
        for need, number in left.items()
    ]


def _sums_that_do_not_fit(roles: Sequence[Role], machine: Machine) -> list[str]:
    found = []
    cores = sum(role.num_actors * role.cores for role in roles)
    if cores > machine.num_cpus:
        found.append(f"cores: {_sum(roles, 'cores')} = {cores:g} asked for, {machine.num_cpus:g} there")
    gpus = sum(role.num_actors * role.gpus for role in roles)
    if gpus > machine.num_gpus + 1e-9:
        found.append(f"GPUs: {_sum(roles, 'gpus')} = {gpus:g} asked for, {machine.num_gpus:g} there")
    memory = sum(role.num_actors * role.memory_gib for role in roles)
    if memory > machine.memory_gib:
        found.append(
            f"host memory: {_sum(roles, 'memory_gib')} = {memory:.1f} GiB needed, {machine.memory_gib:.1f} GiB free"
        )
    if machine.gpu_memory_gib:
        for role in roles:
            if role.gpu_memory_gib > machine.gpu_memory_gib:
                found.append(
                    f"GPU memory: {role.name} needs about {role.gpu_memory_gib:.1f} GiB per GPU, "
                    f"{machine.gpu_memory_gib:.1f} GiB there"
                )
        shared = sum(role.gpu_memory_gib * role.num_actors for role in roles if 0 < role.gpus < 1)
        num_shared = machine.num_gpus - sum(role.gpus * role.num_actors for role in roles if role.gpus >= 1)
        if shared > machine.gpu_memory_gib * num_shared:
            found.append(
                f"GPU memory: roles that share {num_shared:g} GPUs need about {shared:.1f} GiB, "
                f"{machine.gpu_memory_gib * num_shared:.1f} GiB there"
            )
    return found


def place(roles: Sequence[Role], machine: Machine) -> dict[str, list[Placement]]:
    """A placement for every actor of every role.

    On one machine without GPUs, the learner gets one half of the cores and the engines the other half, because learner and
    engines run at the same time while rollouts and critiques alternate. Within a half, actors get cores of their own, or share
    cores if there are fewer cores than actors. Explicit `Role.cores` are assigned in the order of the roles.

    Raises:
        ResourceError: a resource does not suffice; the message names every shortage.
    """
    found = shortages(roles, machine)
    if found:
        raise ResourceError("this run does not fit: " + "; ".join(found))
    automatic = [role for role in roles if role.cores == 0]
    fixed = sum(role.num_actors * role.cores for role in roles)
    free_cpus = machine.num_cpus - fixed
    free_cores = list(machine.cores[int(fixed) :])
    taken = list(machine.cores[: int(fixed)])
    if automatic and (free_cpus <= 0 or (machine.cores and not free_cores)):
        raise ResourceError(
            f"this run does not fit: cores: {_sum(roles, 'cores')} leaves none for "
            + ", ".join(role.name for role in automatic)
        )
    shares = _halves(automatic, free_cores)
    equal = _equal_cpus(roles, machine, free_cpus) if automatic else 0.0
    placements: dict[str, list[Placement]] = {}
    for role in roles:
        if role.cores:
            count = int(role.cores)
            sets = [tuple(taken.pop(0) for _ in range(min(count, len(taken)))) for _ in range(role.num_actors)]
            cpus = [role.cores] * role.num_actors
        else:
            sets = shares[role.name] if free_cores else [()] * role.num_actors
            cpus = [equal] * role.num_actors
        placements[role.name] = [
            Placement(
                num_cpus=number,
                num_gpus=role.gpus,
                cores=cores if not role.gpus else (),
                num_threads=max(1, len(cores) or int(number)),
                env=role.env | (NO_GPU if machine.num_gpus and not role.gpus else {}),
            )
            for cores, number in zip(sets, cpus, strict=True)
        ]
    return _stand_back(_spread_starts(placements, machine))


def _equal_cpus(roles: Sequence[Role], machine: Machine, free_cpus: float) -> float:
    """CPUs of every actor without an explicit number: the largest equal number with which all actors fit on the machines of the
    cluster.

    Raises:
        ResourceError: the actors do not fit even with fractions of a core.
    """
    actors = sum(role.num_actors for role in roles if not role.cores)
    share = _floor(min(free_cpus / actors, equal_share(machine.nodes, actors)))
    while machine.nodes:
        short = _without_room([replace(role, cores=role.cores or share) for role in roles], machine)
        if not short:
            break
        if share < LEAST_SHARE:
            raise ResourceError("this run does not fit: " + "; ".join(short))
        share = share - 1 if share > 1 else share / 2
    return share


def _stand_back(placements: dict[str, list[Placement]]) -> dict[str, list[Placement]]:
    """Let every actor yield to the actors of later roles on the same cores. The roles are in the order in which responses pass
    through them.

    Otherwise the rollouts would run ahead of the critiques. All critiques would then come after the last response, when there
    is no work left that could overlap with the learner's steps.
    """
    found: dict[str, list[Placement]] = {}
    later: list[set[int]] = []
    for name, actors in reversed(placements.items()):
        behind = [sum(bool(cores & set(actor.cores)) for cores in later) for actor in actors]
        found[name] = [
            replace(actor, niceness=min(MOST_NICE, STEP_BACK * steps))
            for actor, steps in zip(actors, behind, strict=True)
        ]
        later.append({core for actor in actors for core in actor.cores})
    return {name: found[name] for name in placements}


def _spread_starts(placements: dict[str, list[Placement]], machine: Machine) -> dict[str, list[Placement]]:
    """Let the first actor have its cores for itself while it starts, because the other actors wait for its first responses
    anyway. An actor that shares cores with an earlier one starts on the cores that the first actor leaves free.
    """
    first = next((actor.cores for actors in placements.values() for actor in actors), ())
    elsewhere = tuple(core for core in machine.cores if core not in first)
    taken: set[int] = set()
    spread: dict[str, list[Placement]] = {name: [] for name in placements}
    for name, actors in placements.items():
        for actor in actors:
            shared = taken & set(actor.cores)
            spread[name].append(replace(actor, start_cores=elsewhere) if shared else actor)
            taken |= set(actor.cores)
    return spread


def share_starts(some: Sequence[Placement], others: Sequence[Placement]) -> bool:
    """Whether an actor of `some` and an actor of `others` are pinned to the same core while they start."""
    cores = {core for actor in some for core in actor.starts_on}
    return any(cores & set(actor.starts_on) for actor in others)


def _halves(roles: Sequence[Role], cores: list[int]) -> dict[str, list[tuple[int, ...]]]:
    learners = [role for role in roles if role.name == "learner"]
    engines = [role for role in roles if role.name != "learner"]
    if learners and engines and len(cores) > 1:
        middle = len(cores) // 2
        return _share(engines, cores[:middle]) | _share(learners, cores[middle:])
    return _share(roles, cores)


def _share(roles: Sequence[Role], cores: list[int]) -> dict[str, list[tuple[int, ...]]]:
    names = [role.name for role in roles for _ in range(role.num_actors)]
    sets: list[tuple[int, ...]]
    if not cores or not names:
        sets = [()] * len(names)
    elif len(cores) < len(names):
        sets = [(cores[i % len(cores)],) for i in range(len(names))]
    else:
        bounds = [round(i * len(cores) / len(names)) for i in range(len(names) + 1)]
        sets = [tuple(cores[low:high]) for low, high in pairwise(bounds)]
    result: dict[str, list[tuple[int, ...]]] = {role.name: [] for role in roles}
    for name, chosen in zip(names, sets, strict=True):
        result[name].append(chosen)
    return result


def _floor(number: float) -> float:
    """Round down to the steps of 1/10000 in which Ray counts CPUs, or to a whole number from 1 on. Rounding up could ask for
    more than there is."""
    whole = int(number)
    return float(whole) if whole >= 1 else int(number * 10_000) / 10_000


def _sum(roles: Sequence[Role], field_name: str) -> str:
    return " + ".join(f"{role.name} {role.num_actors} x {round(getattr(role, field_name), 2):g}" for role in roles)
