"""A side of a comparison in a process of its own, which stands still while the other side is measured."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from benchmarks.harness import Spread, in_turn
from benchmarks.processes import ANSWER, READY, Child, stopped

Turn = Callable[[int], Any]
"""Does the work of one turn, given its number, and says what there is to say of it."""


class Worker(Protocol):
    """One side: a `Side`, or what works in this process."""

    def __call__(self, turn: int) -> Any: ...

    def pids(self) -> list[int]:
        """What has to be stopped while the other side is measured."""

    def close(self) -> None: ...


def compare(ours: Worker, other: Worker, *, repeats: int) -> tuple[tuple[Spread, Spread, Spread], list[Any], list[Any]]:
    """Let both sides do turns 0, 1, ... and close them.

    Args:
        ours, other: what they return of a turn has a `speed`. Whoever waits stands still.

    Returns:
        What `harness.in_turn` says of the speeds, and what ours and the other side returned, turn by turn.
    """
    done: tuple[list[Any], list[Any]] = ([], [])

    def side(number: int, work: Worker, waiting: Worker) -> float:
        with stopped(waiting.pids()):
            done[number].append(work(len(done[number])))
        return done[number][-1].speed

    with ExitStack() as stack:
        for work in (ours, other):
            stack.callback(work.close)
        speeds = in_turn(lambda: side(0, ours, other), lambda: side(1, other, ours), repeats=repeats)
    return speeds, *done


class Side(Child):
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
        super().__init__(_turns, opened, *arguments)

    def __call__(self, turn: int) -> Any:
        """
        Raises:
            TimeoutError, MemoryError, RuntimeError: as `Child.say`.
        """
        return self.say(turn)

    def pids(self) -> list[int]:
        """None: it stands still by itself when it has answered, and while it starts nothing is counted."""
        return []


def _turns(pipe: Any, opened: Callable[..., Turn], *arguments: Any) -> None:
    work = opened(*arguments)
    pipe.send((ANSWER, READY))
    while True:
        pipe.send((ANSWER, work(pipe.recv())))
