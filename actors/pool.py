"""Workers: started, fed, replaced when they die, and ended."""

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
"""How long the others are waited for after one call of many has failed, to find out whether a worker died."""
CLOSE_S = 10.0


class WorkerPool:
    """Workers that do ordered tasks, whichever of them is free.

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
            deadline_s: for the start, for every call, and between two parts of one; a worker that is later is taken for
                dead.
            on_death: told the name of every worker that died.

        Raises:
            WorkerDied: one died while it started.
        """
        self.deadline_s = deadline_s
        self._on_death = on_death
        self._running = False
        self._lock = threading.Lock()
        self._calls: Counter[int] = Counter()
        """Calls of `call` that are not done, by worker."""
        self._abandoned: list[Any] = []
        """References whose results nobody waits for any more."""
        self.slots = [WorkerHandle(spec, placement, number, deadline_s) for number, placement in enumerate(placements)]
        try:
            for slot in self.slots:
                slot.start()
            self._await_start(self.slots)
        except BaseException:
            self.close()
            raise

    def members(self) -> tuple[str, ...]:
        """Names of the workers; a replaced one has another name than the one before it."""
        return tuple(slot.name for slot in self.slots)

    def pids(self) -> list[int]:
        """Processes of the workers that run on this machine."""
        return [slot.pid for slot in self.slots if slot.pid is not None]

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[Any, PartialResult | None]]:
        """Key and results of every task, in their order, part by part as they come; a part is `None` if the task's worker
        died in both attempts, and the results that have not come are missing.

        Tasks are taken from `tasks` in another thread, a bounded number before the oldest that is not delivered.

        Raises:
            WorkerDied: a replacement died while it started.
            Exception: what a worker's method raised.
        """
        if self._running:
            raise RuntimeError("a pool does one run at a time")
        self._running = True
        self._sweep()
        window = 2 * len(self.slots)
        ready = Stream(tasks, ahead=window)
        run = OrderedRun(self, method, ready, window=window)
        try:
            yield from run.results()
        finally:
            ready.close()
            self._abandoned += [stream.completed() for stream in run.unfinished()]
            self._running = False

    def call(self, method: str, arguments: tuple[Any, ...], *, num_items: int) -> Iterator[PartialResult | None]:
        """Results of one call on the worker with the fewest calls, part by part; a part is `None` if the worker died in both
        attempts, and the results that have not come are missing. Any thread may call, also while a run goes on: a worker does
        its calls one after another.

        Raises:
            WorkerDied: a replacement died while it started.
            Exception: what the worker's method raised.
        """
        with self._lock:
            self._sweep()
            slot = min(self.slots, key=lambda slot: self._calls[slot.number])
            self._calls[slot.number] += 1
        received = 0
        try:
            for _ in range(ATTEMPTS):
                self._await_start([slot])
                patience_s = self.deadline_s * (self._calls[slot.number] + self._running)
                try:
                    for part in self._parts(slot.stream(method, *arguments, received), slot, patience_s):
                        received += part.num_items
                        yield part
                        if received == num_items:
                            return
                    raise RuntimeError(f"{method} ended after {received} of {num_items} results")
                except WorkerDied:
                    self.restart(slot)
            yield None
        finally:
            with self._lock:
                self._calls[slot.number] -= 1

    def _parts(self, stream: Any, slot: WorkerHandle, patience_s: float) -> Iterator[PartialResult]:
        """
        Args:
            patience_s: how long the next part may take; more than a deadline while other calls of the worker come first.

        Raises:
            WorkerDied: its process ended, or a part is late.
        """
        try:
            while True:
                if not self.wait([stream], patience_s):
                    raise WorkerDied(f"{slot.name} did not answer within {patience_s:g} s")
                part = self.part(stream)
                if part is None:
                    return
                yield part
                patience_s = self.deadline_s
        finally:
            self._abandoned.append(stream.completed())

    def all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Call a method of every worker at once, each with its own arguments.

        Raises:
            WorkerDied: one died or was late. It has been replaced when this is raised.
            Exception: what a worker's method raised.
        """
        self._sweep()
        self._await_start([slot for slot in self.slots if slot.starting is not None])
        pairs = zip(self.slots, arguments, strict=True)
        calls = {slot.call(method, *given): slot for slot, given in pairs}
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
                except Exception as error:  # raised below, unless a death explains it
                    errors.append(error)
            if errors or dead:
                end = min(end, time.monotonic() + GRACE_S)
            if dead:
                break
        self._abandoned += pending
        if not errors and not dead:
            dead = [calls[reference] for reference in pending]
        if dead:
            names = ", ".join(slot.name for slot in dead)
            self.replace(dead)
            raise WorkerDied(f"{names} died or did not answer {method} within {self.deadline_s:g} s")
        if errors:
            raise errors[0]
        return [remote.outcome(reference) for reference in calls]

    def replace(self, slots: Sequence[WorkerHandle]) -> None:
        """End these workers and wait for others in their places."""
        for slot in slots:
            self.restart(slot)
        self._await_start(slots)

    def wait(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those that are done, as soon as there is one."""
        return remote.wait(references, timeout_s)

    def part(self, stream: Any) -> PartialResult | None:
        """The next of a call in parts, which is there; `None` at its end.

        Raises:
            WorkerDied: its process ended before it.
            Exception: what the method raised.
        """
        reference = next(stream, None)
        return None if reference is None else remote.outcome(reference)

    def restart(self, slot: WorkerHandle) -> None:
        """As `replace`, but without waiting."""
        with self._lock:
            if slot.starting is not None:  # another call has found it dead before
                return
            self._on_death(slot.name)
            slot.kill()
            slot.start()

    def close(self) -> None:
        """End all workers, and wait until those of this machine are gone."""
        closing = [slot.call("close") for slot in self.slots if slot.actor is not None and slot.starting is None]
        if closing:
            remote.wait(closing, CLOSE_S, number=len(closing))
        self._abandoned += closing
        pids = self.pids()
        for slot in self.slots:
            slot.kill()
        self.slots = []
        end = time.monotonic() + CLOSE_S
        while any(psutil.pid_exists(pid) for pid in pids) and time.monotonic() < end:
            time.sleep(POLL_S)
        self._sweep()

    def _sweep(self) -> None:
        """Look at what abandoned calls came to: Ray prints errors that nobody has looked at. Why they were abandoned
        has been raised or counted."""
        if self._abandoned:
            done = remote.wait(self._abandoned, 0.0, number=len(self._abandoned))
            self._abandoned = [reference for reference in self._abandoned if reference not in done]
            for reference in done:
                with suppress(Exception):
                    remote.outcome(reference)

    def _await_start(self, slots: Sequence[WorkerHandle]) -> None:
        end = time.monotonic() + self.deadline_s
        for slot in slots:
            slot.finish_start(max(0.0, end - time.monotonic()))
