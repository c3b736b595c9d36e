"""Ordered results from workers that finish in any order. Free of Ray: a crew gives out references and waits on them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rlsys.errors import WorkerDied
from rlsys.streams import Stream

POLL_S = 0.05
"""How long a wait lasts at most before new tasks are looked for."""
ATTEMPTS = 2
"""A task whose worker died is done once more."""


@dataclass(eq=False, kw_only=True)
class Task:
    """One call of a worker's method."""

    key: Any
    """Comes back with the result; does not leave the process."""
    arguments: tuple[Any, ...]
    attempts: int = 0
    done: bool = False
    result: Any = None


class Worker(Protocol):
    """What an ordered run needs of a worker."""

    starting: Any

    def arrived(self) -> bool:
        """Whether the worker can be called; sees the end of its start."""

    def call(self, method: str, *arguments: Any) -> Any:
        """Begin a call; a reference to its result."""


class Crew(Protocol):
    """What an ordered run needs of a pool of workers."""

    deadline_s: float
    slots: Sequence[Worker]

    def wait(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those that are done, as soon as there is one."""

    def outcome(self, reference: Any) -> Any:
        """Result of a call that is done. Raises `WorkerDied`, or what the method raised."""

    def restart(self, slot: Worker) -> None:
        """Begin to put another worker in its place."""


class OrderedRun:
    """One method over many tasks: dynamic assignment, bounded look-ahead, results in the order of the tasks."""

    def __init__(self, crew: Crew, method: str, tasks: Stream[Task], *, window: int) -> None:
        """
        Args:
            window: tasks that may be in work or waiting behind the oldest that is not delivered.
        """
        self._crew = crew
        self._method = method
        self._tasks = tasks
        self._window = window
        self._undelivered: deque[Task] = deque()
        self._again: deque[Task] = deque()
        self._working: dict[Any, tuple[Worker, Task, float]] = {}

    def results(self) -> Iterator[tuple[Any, Any]]:
        """Key and result of every task; the result is `None` if its worker died in every attempt."""
        while True:
            self._hand_out()
            while self._undelivered and self._undelivered[0].done:
                task = self._undelivered.popleft()
                self._hand_out()
                yield task.key, task.result
            if not self._undelivered and self._tasks.ended():
                return
            self._collect()

    def unfinished(self) -> list[Any]:
        """References of calls that were begun and whose results were not taken."""
        return list(self._working)

    def _hand_out(self) -> None:
        busy = {id(slot) for slot, _, _ in self._working.values()}
        for slot in self._crew.slots:
            if id(slot) in busy or not slot.arrived():
                continue
            task = self._next()
            if task is None:
                return
            reference = slot.call(self._method, *task.arguments)
            self._working[reference] = (slot, task, time.monotonic() + self._crew.deadline_s)

    def _next(self) -> Task | None:
        if self._again:
            return self._again.popleft()
        if len(self._undelivered) >= self._window:
            return None
        task = self._tasks.poll()
        if task is not None:
            self._undelivered.append(task)
        return task

    def _collect(self) -> None:
        """Wait a moment for results, for a worker that starts, or for a task."""
        starting = [slot.starting for slot in self._crew.slots if slot.starting is not None]
        if not self._working and not starting:
            self._tasks.wait_ready(POLL_S)
            return
        for reference in self._crew.wait([*self._working, *starting], POLL_S):
            if reference in self._working:
                self._finish(reference)
        now = time.monotonic()
        for reference in [reference for reference, (_, _, end) in self._working.items() if now > end]:
            self._lost(reference)

    def _finish(self, reference: Any) -> None:
        try:
            result = self._crew.outcome(reference)
        except WorkerDied:
            self._lost(reference)
            return
        _, task, _ = self._working.pop(reference)
        task.result, task.done = result, True

    def _lost(self, reference: Any) -> None:
        """The worker is dead, or as good as: another takes its place, and its task is done once more."""
        slot, task, _ = self._working.pop(reference)
        self._crew.restart(slot)
        task.attempts += 1
        if task.attempts < ATTEMPTS:
            self._again.append(task)
        else:
            task.done = True
