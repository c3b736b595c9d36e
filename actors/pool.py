"""Worker processes: started, fed, replaced when they die, and ended. The only file of the actors that knows Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.ordered import POLL_S, OrderedRun, Task
from actors.parts import Part
from rlsys.errors import WorkerDied
from rlsys.placement import Placement
from rlsys.streams import Stream

GRACE_S = 5.0
"""How long the others are waited for after one call of many has failed, to find out whether a worker died."""
CLOSE_S = 10.0


@dataclass(frozen=True, kw_only=True)
class Spec:
    """How to make a worker."""

    name: str
    worker: type
    """A plain class that can be imported where the worker will run."""
    options: dict[str, Any]
    """Arguments of the class."""
    current: Callable[[], dict[str, Any]] = dict
    """More arguments, asked for at every start: where the current weights are."""


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
        self._abandoned: list[Any] = []
        """References whose results nobody waits for any more."""
        self.slots = [_Slot(spec, placement, number, deadline_s) for number, placement in enumerate(placements)]
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

    def run(self, method: str, tasks: Iterable[Task]) -> Iterator[tuple[Any, Part | None]]:
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
        dead: list[_Slot] = []
        end = time.monotonic() + self.deadline_s
        pending = list(calls)
        while pending and time.monotonic() < end:
            for reference in self.wait(pending, POLL_S):
                pending.remove(reference)
                try:
                    self.outcome(reference)
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
        return ray.get(list(calls))

    def replace(self, slots: Sequence[_Slot]) -> None:
        """End these workers and wait for others in their places."""
        for slot in slots:
            self.restart(slot)
        self._await_start(slots)

    def wait(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Those that are done, as soon as there is one."""
        return ray.wait(list(references), timeout=timeout_s)[0]

    def outcome(self, reference: Any) -> Any:
        """Result of a call that is done.

        Raises:
            WorkerDied: its process ended before it answered.
            Exception: what the method raised.
        """
        try:
            return ray.get(reference)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise WorkerDied(str(error)) from error

    def part(self, stream: Any) -> Part | None:
        """The next of a call in parts, which is there; `None` at its end.

        Raises:
            WorkerDied: its process ended before it.
            Exception: what the method raised.
        """
        reference = next(stream, None)
        return None if reference is None else self.outcome(reference)

    def restart(self, slot: _Slot) -> None:
        """As `replace`, but without waiting."""
        self._on_death(slot.name)
        slot.kill()
        slot.start()

    def close(self) -> None:
        """End all workers, and wait until those of this machine are gone."""
        closing = [slot.call("close") for slot in self.slots if slot.actor is not None and slot.starting is None]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
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
            done, self._abandoned = ray.wait(self._abandoned, num_returns=len(self._abandoned), timeout=0)
            for reference in done:
                with suppress(Exception):
                    ray.get(reference)

    def _await_start(self, slots: Sequence[_Slot]) -> None:
        end = time.monotonic() + self.deadline_s
        for slot in slots:
            slot.finish_start(max(0.0, end - time.monotonic()))


@dataclass(eq=False)
class _Slot:
    """The place of a worker: keeps its number and placement when the worker is replaced."""

    spec: Spec
    placement: Placement
    number: int
    deadline_s: float
    """For a start."""
    actor: Any = None
    starting: Any = None
    """Reference that is there when the worker is; `None` once that has been seen."""
    pid: int | None = None
    """Process on this machine; `None` while unknown or elsewhere."""
    _starts: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)
    """When the last start began, by `time.monotonic`."""

    @property
    def name(self) -> str:
        again = f".{self._starts - 1}" if self._starts > 1 else ""
        return f"{self.spec.name}-{self.number}{again}"

    def arrived(self) -> bool:
        """Whether the worker can be called; sees the end of its start.

        Raises:
            WorkerDied: it died while it started, or takes too long.
        """
        if self.starting is not None:
            is_late = time.monotonic() > self._started + self.deadline_s
            if is_late or ray.wait([self.starting], timeout=0)[0]:
                self.finish_start(0.0)
        return self.actor is not None and self.starting is None

    def call(self, method: str, *arguments: Any) -> Any:
        """Begin a call; a reference to its result."""
        return self.actor.call.remote(method, *arguments)

    def stream(self, method: str, *arguments: Any) -> Any:
        """Begin a call of a method that yields parts; the stream of references to them."""
        return self.actor.stream.options(num_returns="streaming").remote(method, *arguments)

    def start(self) -> None:
        """Begin to start a worker with the weights that are current now."""
        self._starts += 1
        self._started = time.monotonic()
        self.actor = (
            ray.remote(_hosted(self.spec.worker))
            .options(
                num_cpus=self.placement.num_cpus,
                num_gpus=self.placement.num_gpus,
            )
            .remote(self.placement)
        )
        self.starting = self.actor.start.remote({**self.spec.options, **self.spec.current()})

    def finish_start(self, timeout_s: float) -> None:
        """
        Raises:
            WorkerDied: it died while it started, or took too long.
            Exception: what its class raised.
        """
        try:
            pid, node = ray.get(self.starting, timeout=timeout_s)
        except RayTaskError as error:
            raise error.cause from error
        except RayActorError as error:
            raise WorkerDied(f"{self.name} died while it started: {error}") from error
        except GetTimeoutError as error:
            raise WorkerDied(f"{self.name} did not start in time; are its CPUs and GPUs free?") from error
        self.starting = None
        self.pid = pid if node == ray.get_runtime_context().get_node_id() else None

    def kill(self) -> None:
        """End the worker; nothing happens if it is dead."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self.starting = self.pid = None


def _hosted(worker: type) -> type:
    """The Ray actor around a plain worker class; has its name, which is what `ps` shows."""

    class Hosted:
        def __init__(self, placement: Placement) -> None:
            placement.apply()
            import torch

            torch.set_num_threads(placement.num_threads)
            self._placement = placement
            self._worker: Any = None

        def start(self, options: dict[str, Any]) -> tuple[int, str]:
            import os

            self._worker = worker(**options)
            self._placement.settle()
            return os.getpid(), ray.get_runtime_context().get_node_id()

        def call(self, method: str, *arguments: Any) -> Any:
            return getattr(self._worker, method)(*arguments)

        def stream(self, method: str, *arguments: Any) -> Iterator[Part]:
            yield from getattr(self._worker, method)(*arguments)

    Hosted.__name__ = Hosted.__qualname__ = worker.__name__
    return Hosted
