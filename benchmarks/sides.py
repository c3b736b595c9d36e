"""A side of a comparison in a process of its own, which sleeps while the other side is measured."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any, Protocol

from benchmarks.harness import Spread, in_turn
from benchmarks.processes import ANSWER, failures_sent, received
from rlsys.machine import this_machine
from rlsys.placement import Placement
from rlsys.progress import quiet_libraries

START_S = 600.0
"""How long a side may take to start; compiling a model takes minutes."""
READY = "ready"

Turn = Callable[[int], Any]
"""Does the work of one turn, given its number, and says what there is to say of it."""


class Worker(Protocol):
    """One side: a `Side`, or what works in this process."""

    def __call__(self, turn: int) -> Any: ...

    def close(self) -> None: ...


def compare(ours: Worker, other: Worker, *, repeats: int) -> tuple[tuple[Spread, Spread, Spread], list[Any], list[Any]]:
    """Let both sides do turns 0, 1, ... and close them.

    Args:
        ours, other: what they return of a turn has a `speed`.

    Returns:
        What `harness.in_turn` says of the speeds, and what ours and the other side returned, turn by turn.
    """
    done: tuple[list[Any], list[Any]] = ([], [])

    def side(number: int, work: Worker) -> float:
        done[number].append(work(len(done[number])))
        return done[number][-1].speed

    try:
        speeds = in_turn(lambda: side(0, ours), lambda: side(1, other), repeats=repeats)
    finally:
        ours.close()
        other.close()
    return speeds, *done


def whole_machine() -> Placement:
    """All cores of this machine, with as many threads."""
    cores = this_machine().cores
    return Placement(num_cpus=len(cores), cores=cores, num_threads=len(cores))


class Side:
    """Calls a function in another process.

    side = Side(open_work, argument)       # open_work(argument) makes the function, in the other process
    side(3)                                # the function's result
    side.close()
    """

    def __init__(self, opened: Callable[..., Turn], *arguments: Any) -> None:
        """Start the process; the first call waits until it is ready.

        Args:
            opened: a function of a module; called with `arguments`, it returns the work.
        """
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_work, args=(there, opened, arguments), daemon=True)
        self._process.start()
        there.close()
        self._opened = opened
        self._ready = False

    def __call__(self, turn: int) -> Any:
        """
        Raises:
            TimeoutError: the other process does not start.
            MemoryError, RuntimeError: as `benchmarks.processes.received`.
        """
        if not self._ready and not self._here.poll(START_S):
            raise TimeoutError(f"{self._opened.__qualname__} did not start within {START_S:g} s")
        self._ready = self._ready or received(self._here) == READY
        self._here.send(turn)
        return received(self._here)

    def close(self) -> None:
        """End the process."""
        self._here.close()
        self._process.join()


def _work(connection: Any, opened: Callable[..., Turn], arguments: tuple[Any, ...]) -> None:
    quiet_libraries()
    placement = whole_machine()
    placement.apply()
    import torch

    torch.set_num_threads(placement.num_threads)
    with failures_sent(connection):
        work = opened(*arguments)
        connection.send((ANSWER, READY))
        while True:
            try:
                turn = connection.recv()
            except EOFError:
                return
            connection.send((ANSWER, work(turn)))
