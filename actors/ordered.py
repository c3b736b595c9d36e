"""Ordered results from workers that finish in any order. This module does not use Ray: the pool makes the streams of calls, and
waits for them."""

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
"""Longest time of a wait before the run looks for new tasks again."""
ATTEMPTS = 2
"""Number of attempts at a task. If the worker dies, the results that have not arrived yet are computed once more."""


@dataclass(eq=False, kw_only=True)
class Task:
    """One call of a worker's method, which yields its items in partial results."""

    key: Any
    """Any value, which is delivered with every partial result of the task. It does not leave the process."""
    arguments: tuple[Any, ...]
    """Arguments of the method. The number of leading items to skip is appended to them."""
    num_items: int
    """Number of items that the call yields in all."""
    attempts: int = 0
    received: int = 0
    """Number of items that have arrived."""
    parts: deque[PartialResult | None] = field(default_factory=deque)
    """Partial results that have arrived and are not delivered yet; `None` if the remaining items will not come."""

    @property
    def ended(self) -> bool:
        """Whether no partial result will arrive any more."""
        return self.received == self.num_items or self.attempts == ATTEMPTS


class Worker(Protocol):
    """The methods of a worker handle that an ordered run uses."""

    name: str
    """Name of the worker; its replacement has another."""
    starting: Any
    """Reference that is ready when the worker has started; `None` once its start is complete."""

    def arrived(self) -> bool:
        """Whether the worker can be called. The call completes a start that has ended.

        Raises:
            WorkerDied: the worker died while it started, or has not started in time.
        """

    def stream(self, method: str, *arguments: Any) -> Any:
        """Begin a call, and return the stream of its partial results."""


class Pool(Protocol):
    """The methods of a worker pool that an ordered run uses."""

    deadline_s: float
    workers: Sequence[Worker]

    def wait(self, streams: Sequence[Any], timeout_s: float) -> list[Any]:
        """The streams that are ready. The call returns as soon as one is ready, or after `timeout_s`."""

    def part(self, stream: Any) -> PartialResult | None:
        """The next partial result of a stream that is ready; `None` at its end.

        Raises:
            WorkerDied: the worker died.
            Exception: the error of the method.
        """

    def restart(self, worker: Worker, name: str) -> None:
        """Begin to replace the worker, if it still has this name."""


class OrderedRun:
    """Runs one method for many tasks. Free workers get the next task, the look-ahead is bounded, and the results come in the
    order of the tasks."""

    def __init__(self, pool: Pool, method: str, tasks: Stream[Task], *, window: int) -> None:
        """
        Args:
            window: largest number of tasks from the oldest one that is not delivered to the newest one that has been started.
        """
        self._pool = pool
        self._method = method
        self._tasks = tasks
        self._window = window
        self._undelivered: deque[Task] = deque()
        self._again: deque[Task] = deque()
        self._working: dict[Any, tuple[Worker, str, Task, float]] = {}

    def results(self) -> Iterator[tuple[Any, PartialResult | None]]:
        """Yield the key and the next partial result of the oldest task, as soon as it arrives. The partial result is `None` if
        the task's worker died in every attempt; the items that have not arrived by then are missing.
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
        """The streams that were begun and have not been read to their end."""
        return list(self._working)

    def _hand_out(self) -> None:
        busy = {id(worker) for worker, _, _, _ in self._working.values()}
        # Every idle worker is checked, even if there is no task, so that `_collect` does not wait for a start that has ended.
        free = [worker for worker in self._pool.workers if id(worker) not in busy and worker.arrived()]
        for worker in free:
            task = self._next()
            if task is None:
                return
            name, stream = worker.name, worker.stream(self._method, *task.arguments, task.received)
            self._working[stream] = (worker, name, task, self._deadline())

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
        return time.monotonic() + self._pool.deadline_s

    def _collect(self) -> None:
        """Wait for at most `POLL_S` until a partial result arrives, a worker has started, or a task is available."""
        starting = [worker.starting for worker in self._pool.workers if worker.starting is not None]
        if not self._working and not starting:
            self._tasks.wait_ready(POLL_S)
            return
        for one in self._pool.wait([*self._working, *starting], POLL_S):
            if one in self._working:
                self._receive(one)
        now = time.monotonic()
        for stream in [stream for stream, (_, _, _, end) in self._working.items() if now > end]:
            if self._pool.wait([stream], 0):  # the result arrived in time, but the consumer was busy
                self._receive(stream)
            else:
                self._lost(stream)

    def _receive(self, stream: Any) -> None:
        worker, name, task, _ = self._working[stream]
        try:
            part = self._pool.part(stream)
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
            self._working[stream] = (worker, name, task, self._deadline())

    def _lost(self, stream: Any) -> None:
        """Replace a worker that died or missed its deadline. The rest of its task is queued again, unless this was the last
        attempt."""
        worker, name, task, _ = self._working.pop(stream)
        self._pool.restart(worker, name)
        task.attempts += 1
        if task.ended:
            task.parts.append(None)
        else:
            self._again.append(task)
