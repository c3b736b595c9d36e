"""Ordered results from workers that finish in any order. Free of Ray: a pool gives out streams and waits on them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.partial import PartialResult
from rlsys.common.streams import Stream
from rlsys.errors import WorkerDied

POLL_S = 0.05
"""How long a wait lasts at most before new tasks are looked for."""
ATTEMPTS = 2
"""A task whose worker died is done once more, as far as its results have not come."""


@dataclass(eq=False, kw_only=True)
class Task:
    """One call of a worker's method, which hands over its results in parts."""

    key: Any
    """Comes back with every part; does not leave the process."""
    arguments: tuple[Any, ...]
    """Of the method; how many results are not wanted is put behind them."""
    num_items: int
    """Results that it has."""
    attempts: int = 0
    received: int = 0
    """Results that came."""
    parts: deque[PartialResult | None] = field(default_factory=deque)
    """Those not delivered yet; `None` if there will be no more."""

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.received == self.num_items or self.attempts == ATTEMPTS


class Worker(Protocol):
    """What an ordered run needs of a worker."""

    starting: Any

    def arrived(self) -> bool:
        """Whether the worker can be called; sees the end of its start. Raises `WorkerDied` if that does not come in time."""

    def stream(self, method: str, *arguments: Any) -> Any:
        """Begin a call; the stream of its parts."""


class Pool(Protocol):
    """What an ordered run needs of a pool of workers."""

    deadline_s: float
    slots: Sequence[Worker]

    def wait(self, streams: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those that have something to say, as soon as there is one."""

    def part(self, stream: Any) -> PartialResult | None:
        """The next of a stream that has something to say; `None` at its end. Raises `WorkerDied`, or what the method
        raised."""

    def restart(self, slot: Worker) -> None:
        """Begin to put another worker in its place."""


class OrderedRun:
    """One method over many tasks: dynamic assignment, bounded look-ahead, results in the order of the tasks."""

    def __init__(self, pool: Pool, method: str, tasks: Stream[Task], *, window: int) -> None:
        """
        Args:
            window: tasks that may be in work or waiting behind the oldest that is not delivered.
        """
        self._crew = pool
        self._method = method
        self._tasks = tasks
        self._window = window
        self._undelivered: deque[Task] = deque()
        self._again: deque[Task] = deque()
        self._working: dict[Any, tuple[Worker, Task, float]] = {}

    def results(self) -> Iterator[tuple[Any, PartialResult | None]]:
        """Key and next part of the oldest task, as soon as it is there; the part is `None` if the task's worker died in
        every attempt: what has not come by then will not come.
        """
        while True:
            self._hand_out()
            while self._undelivered and self._undelivered[0].parts:
                task = self._undelivered[0]
                part = task.parts.popleft()
                if task.ended and not task.parts:
                    self._undelivered.popleft()
                    self._hand_out()
                yield task.key, part
            if not self._undelivered and self._tasks.ended():
                return
            self._collect()

    def unfinished(self) -> list[Any]:
        """Streams that were begun and have not been read to their end."""
        return list(self._working)

    def _hand_out(self) -> None:
        busy = {id(slot) for slot, _, _ in self._working.values()}
        # All are asked, whether there is a task or not: who has started must not be waited for any more.
        free = [slot for slot in self._crew.slots if id(slot) not in busy and slot.arrived()]
        for slot in free:
            task = self._next()
            if task is None:
                return
            stream = slot.stream(self._method, *task.arguments, task.received)
            self._working[stream] = (slot, task, self._deadline())

    def _next(self) -> Task | None:
        if self._again:
            return self._again.popleft()
        if len(self._undelivered) >= self._window:
            return None
        task = self._tasks.poll()
        if task is not None:
            self._undelivered.append(task)
        return task

    def _deadline(self) -> float:
        return time.monotonic() + self._crew.deadline_s

    def _collect(self) -> None:
        """Wait a moment for results, for a worker that starts, or for a task."""
        starting = [slot.starting for slot in self._crew.slots if slot.starting is not None]
        if not self._working and not starting:
            self._tasks.wait_ready(POLL_S)
            return
        for one in self._crew.wait([*self._working, *starting], POLL_S):
            if one in self._working:
                self._receive(one)
        now = time.monotonic()
        for stream in [stream for stream, (_, _, end) in self._working.items() if now > end]:
            if self._crew.wait([stream], 0):  # it was in time: nobody has listened
                self._receive(stream)
            else:
                self._lost(stream)

    def _receive(self, stream: Any) -> None:
        slot, task, _ = self._working[stream]
        try:
            part = self._crew.part(stream)
        except WorkerDied:
            self._lost(stream)
            return
        if part is None:
            raise RuntimeError(f"{self._method} ended after {task.received} of {task.num_items} results")
        task.parts.append(part)
        task.received += part.num_items
        if task.ended:
            del self._working[stream]
        else:
            self._working[stream] = (slot, task, self._deadline())

    def _lost(self, stream: Any) -> None:
        """The worker is dead, or as good as: another takes its place, and does what is left of its task, once."""
        slot, task, _ = self._working.pop(stream)
        self._crew.restart(slot)
        task.attempts += 1
        if task.ended:
            task.parts.append(None)
        else:
            self._again.append(task)
