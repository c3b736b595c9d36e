"""The worker pool: it starts the workers, gives them work, replaces those that die, and ends them."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psutil

from actors import remote
from actors.ordered import ATTEMPTS, POLL_S, OrderedRun, Task
from actors.partial import PartialResult
from actors.remote import Spec, WorkerHandle
from rlsys.common.streams import Stream
from rlsys.errors import WorkerDied
from rlsys.placement import Placement

GRACE_S = 5.0
"""Time to wait for the other calls after one of several has failed, to find out whether a worker died."""
CLOSE_S = 10.0
"""Time limit of closing the workers, and of the end of their processes."""


class WorkerPool:
    """A pool of workers. Tasks go to whichever worker is free; their results come in the order of the tasks.

    pool = WorkerPool(spec, placements, deadline_s=600, on_death=count)
    for key, part in pool.run("rollout", tasks): ...      # in the order of the tasks
    pool.close()
    """

    def __init__(
        self,
        spec: Spec,
        placements: Sequence[Placement],
        *,
        deadline_s: float,
        on_death: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Start all workers at once and wait for them.

        Args:
            spec: how to make a worker.
            placements: one placement per worker.
            deadline_s: time limit of the start, of every call, and between two partial results of a call. A worker that misses
                it counts as dead.
            on_death: called with the name of every worker that dies.

        Raises:
            WorkerDied: a worker died while it started.
        """
        self.deadline_s = deadline_s
        self._on_death = on_death
        self._running = False
        self._lock = threading.Lock()
        self._calls: Counter[int] = Counter()
        """Number of unfinished calls by `call`, by number of the worker."""
        self._sent: dict[str, list[object]] = {}
        """The calls by `call` that a worker has received and not finished, by its name, in the order in which it does them."""
        self._abandoned: list[Any] = []
        """References whose results are not needed any more."""
        self.workers = [
            WorkerHandle(spec, placement, number, deadline_s) for number, placement in enumerate(placements)
        ]
        try:
            for worker in self.workers:
                worker.start()
            self._await_start(self.workers)
        except BaseException:
            self.close()
            raise

    def members(self) -> tuple[str, ...]:
        """Names of the workers. A replacement has another name than the worker that it replaces."""
        return tuple(worker.name for worker in self.workers)

    def pids(self) -> list[int]:
        """Ids of the workers' processes that run on this machine."""
        return [worker.pid for worker in self.workers if worker.pid is not None]

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[Any, PartialResult | None]]:
        """Yield the key and the partial results of every task, in the order of the tasks, as soon as they arrive. A partial
        result is `None` if the task's worker died in both attempts; the items that have not arrived are then missing.

        Another thread takes the tasks from `tasks`, a bounded number ahead of the oldest task that is not delivered.

        Raises:
            WorkerDied: a replacement died while it started.
            Exception: the error of a worker's method.
            RuntimeError: another `run` is in progress.
        """
        if self._running:
            raise RuntimeError("a pool does one run at a time")
        self._running = True
        self._sweep()
        window = 2 * len(self.workers)
        ready = Stream(tasks, ahead=window)
        run = OrderedRun(self, method, ready, window=window)
        try:
            yield from run.results()
        finally:
            ready.close()
            self._abandoned += [stream.completed() for stream in run.unfinished()]
            self._running = False

    def call(self, method: str, arguments: tuple[Any, ...], *, num_items: int) -> Iterator[PartialResult | None]:
        """Yield the partial results of one call on the worker with the fewest unfinished calls. A partial result is `None` if
        the worker died in both attempts; the items that have not arrived are then missing.

        Any thread may use this method, also during a `run`, because a worker executes its calls one after the other.

        Args:
            num_items: number of items that the call yields in all.

        Raises:
            WorkerDied: a replacement died while it started.
            Exception: the error of the worker's method.
        """
        with self._lock:
            self._sweep()
            worker = min(self.workers, key=lambda worker: self._calls[worker.number])
            self._calls[worker.number] += 1
        received = attempts = 0
        try:
            while attempts < ATTEMPTS:
                self._await_start([worker])
                with self._lock:
                    name, mine = worker.name, object()
                    sent = self._sent.setdefault(name, [])
                    sent.append(mine)
                    stream = worker.stream(method, *arguments, received)
                    patience_s = self.deadline_s * (self._calls[worker.number] + self._running)
                try:
                    for part in self._parts(stream, worker, patience_s):
                        received += part.num_items
                        yield part
                        if received == num_items:
                            return
                    raise RuntimeError(f"{method} ended after {received} of {num_items} results")
                except WorkerDied:
                    # The worker has died in the first of its unfinished calls, and no other call caused its death. The entry
                    # stays in the list, so that the other calls see that they were not the first.
                    attempts += sent[0] is mine
                    mine = None
                    self.restart(worker, name)
                finally:
                    if mine is not None:
                        sent.remove(mine)
            yield None
        finally:
            with self._lock:
                self._calls[worker.number] -= 1

    def _parts(self, stream: Any, worker: WorkerHandle, patience_s: float) -> Iterator[PartialResult]:
        """The partial results of a stream.

        Args:
            patience_s: time limit of the first partial result. It is longer than `deadline_s` if the worker has to finish other
                calls first.

        Raises:
            WorkerDied: the process of the worker ended, or a partial result is late.
        """
        try:
            while True:
                if not self.wait([stream], patience_s):
                    raise WorkerDied(f"{worker.name} did not answer within {patience_s:g} s")
                part = self.part(stream)
                if part is None:
                    return
                yield part
                patience_s = self.deadline_s
        finally:
            self._abandoned.append(stream.completed())

    def all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of all workers at once, each with its own arguments, and return the results in order.

        Raises:
            WorkerDied: a worker died or missed the deadline. It has been replaced when this is raised.
            Exception: the error of a worker's method.
        """
        self._sweep()
        self._await_start([worker for worker in self.workers if worker.starting is not None])
        pairs = zip(self.workers, arguments, strict=True)
        calls = {worker.call(method, *given): worker for worker, given in pairs}
        errors: list[BaseException] = []
        dead: list[WorkerHandle] = []
        end = time.monotonic() + self.deadline_s
        pending = list(calls)
        while pending and time.monotonic() < end:
            for reference in self.wait(pending, POLL_S):
                pending.remove(reference)
                try:
                    remote.outcome(reference)
                except WorkerDied:
                    dead.append(calls[reference])
                except Exception as error:  # raised below, unless the death of a worker explains it
                    errors.append(error)
            if errors or dead:
                end = min(end, time.monotonic() + GRACE_S)
            if dead:
                break
        self._abandoned += pending
        if not errors and not dead:
            dead = [calls[reference] for reference in pending]
        if dead:
            names = ", ".join(worker.name for worker in dead)
            self.replace(dead)
            raise WorkerDied(f"{names} died or did not answer {method} within {self.deadline_s:g} s")
        if errors:
            raise errors[0]
        return [remote.outcome(reference) for reference in calls]

    def replace(self, workers: Sequence[WorkerHandle]) -> None:
        """Replace workers, and wait until the replacements have started."""
        for worker in workers:
            self.restart(worker, worker.name)
        self._await_start(workers)

    def wait(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """The references that are ready. The call returns as soon as one is ready, or after `timeout_s`."""
        return remote.wait(references, timeout_s)

    def part(self, stream: Any) -> PartialResult | None:
        """The next partial result of a stream that is ready; `None` at its end.

        Raises:
            WorkerDied: the process of the worker ended before.
            Exception: the error of the method.
        """
        reference = next(stream, None)
        return None if reference is None else remote.outcome(reference)

    def restart(self, worker: WorkerHandle, name: str) -> None:
        """Begin to replace the worker of this name, as `replace` but without waiting. Nothing happens if another call has
        already found it dead and has replaced it."""
        with self._lock:
            if worker.name != name:
                return
            self._on_death(name)
            worker.kill()
            worker.start()

    def close(self) -> None:
        """End all workers, and wait until the processes on this machine are gone."""
        closing = [
            worker.call("close") for worker in self.workers if worker.actor is not None and worker.starting is None
        ]
        if closing:
            remote.wait(closing, CLOSE_S, number=len(closing))
        self._abandoned += closing
        pids = self.pids()
        for worker in self.workers:
            worker.kill()
        self.workers = []
        end = time.monotonic() + CLOSE_S
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(POLL_S)
        self._sweep()

    def _sweep(self) -> None:
        """Fetch the results of abandoned calls that are done, because Ray prints errors that nobody has fetched. The reason why
        the calls were abandoned has already been raised or counted."""
        if self._abandoned:
            done = remote.wait(self._abandoned, 0.0, number=len(self._abandoned))
            self._abandoned = [reference for reference in self._abandoned if reference not in done]
            for reference in done:
                with suppress(Exception):
                    remote.outcome(reference)

    def _await_start(self, workers: Sequence[WorkerHandle]) -> None:
        end = time.monotonic() + self.deadline_s
        for worker in workers:
            worker.finish_start(max(0.0, end - time.monotonic()))
