"""A worker in a process of its own, and what became of calls to it. The only file of the actors that knows Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.partial import PartialResult
from rlsys.errors import WorkerDied
from rlsys.placement import Placement


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


@dataclass(eq=False)
class WorkerHandle:
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
            if is_late or wait([self.starting], 0.0):
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
        starting = self.starting
        if starting is None:  # another thread has seen its end
            return
        try:
            pid, node = ray.get(starting, timeout=timeout_s)
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


def wait(references: Sequence[Any], timeout_s: float, *, number: int = 1) -> list[Any]:
    """Those that are done, as soon as there are so many."""
    return ray.wait(list(references), num_returns=number, timeout=timeout_s)[0]


def outcome(reference: Any) -> Any:
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

        def stream(self, method: str, *arguments: Any) -> Iterator[PartialResult]:
            yield from getattr(self._worker, method)(*arguments)

    Hosted.__name__ = Hosted.__qualname__ = worker.__name__
    return Hosted
