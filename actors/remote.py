"""Workers in Ray actors, and the results of calls to them. This is the only file of the actors that uses Ray."""

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
    """Function that returns more arguments at every start, such as the folder of the current weights."""


@dataclass(eq=False)
class WorkerHandle:
    """The handle of a worker. It keeps its number and placement when the worker is replaced."""

    spec: Spec
    placement: Placement
    number: int
    deadline_s: float
    """Time limit of a start."""
    actor: Any = None
    starting: Any = None
    """Reference that is ready when the worker has started; `None` once its start is complete."""
    pid: int | None = None
    """Id of the process on this machine; `None` if it is unknown or on another machine."""
    _starts: int = field(default=0, init=False)
    _started: float = field(default=0.0, init=False)
    """Time at which the last start began, by `time.monotonic`."""

    @property
    def name(self) -> str:
        again = f".{self._starts - 1}" if self._starts > 1 else ""
        return f"{self.spec.name}-{self.number}{again}"

    def arrived(self) -> bool:
        """Whether the worker can be called. The call completes a start that has ended.

        Raises:
            WorkerDied: the worker died while it started, or has not started in time.
        """
        if self.starting is not None:
            is_late = time.monotonic() > self._started + self.deadline_s
            if is_late or wait([self.starting], 0.0):
                self.finish_start(0.0)
        return self.actor is not None and self.starting is None

    def call(self, method: str, *arguments: Any) -> Any:
        """Begin a call, and return the reference to its result."""
        return self.actor.call.remote(method, *arguments)

    def stream(self, method: str, *arguments: Any) -> Any:
        """Begin a call of a method that yields partial results, and return the stream of references to them."""
        return self.actor.stream.options(num_returns="streaming").remote(method, *arguments)

    def start(self) -> None:
        """Begin to start a worker with the current weights."""
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
        """Wait until the worker has started.

        Raises:
            WorkerDied: the worker died while it started, or has not started within `timeout_s`.
            Exception: the error of the worker's class.
        """
        starting = self.starting
        if starting is None:  # another thread has completed the start
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
        """End the worker. Nothing happens if it is already dead."""
        if self.actor is not None:
            ray.kill(self.actor)
        self.actor = self.starting = self.pid = None


def wait(references: Sequence[Any], timeout_s: float, *, number: int = 1) -> list[Any]:
    """The references that are ready. The call returns as soon as `number` references are ready, or after `timeout_s`."""
    return ray.wait(list(references), num_returns=number, timeout=timeout_s)[0]


def outcome(reference: Any) -> Any:
    """The result of a call that is done.

    Raises:
        WorkerDied: the process of the worker ended before it answered.
        Exception: the error of the method.
    """
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error.cause from error
    except RayActorError as error:
        raise WorkerDied(str(error)) from error


def _hosted(worker: type) -> type:
    """The Ray actor class around a plain worker class. It has the name of the worker class, because `ps` shows this name."""

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
