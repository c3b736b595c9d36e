"""Processes for feedback that asks no engine. They keep its computations from blocking the driver's threads, which feed the
engines and the learner. This module does not use Ray, because the processes need no device and no placement.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

from rlsys import wire
from rlsys.asking.driver import without_asking
from rlsys.contracts import Feedback
from rlsys.errors import ConfigError
from rlsys.records import RolloutGroup, Verdict

ATTEMPTS = 2
"""Number of attempts to judge a group. If a process dies in every attempt, the group's judgements count as failed."""

Judged = tuple[float, tuple[Verdict, ...]]
"""The computation time of a group's verdicts in seconds, and the verdicts."""


_Answer = tuple[float, bytes, tuple[bytes, str] | None]
"""The answer of a process: seconds, a frame of verdicts, and the plug-in's error or `None`. The error is given as the pickled
exception (empty if it cannot be pickled) and its traceback."""


class RemoteTraceback(Exception):
    """The traceback of a plug-in's error in its process, as the cause of the error that the driver raises."""


class FeedbackProcesses:
    """A pool of processes, each with a copy of a feedback plug-in.

    processes = FeedbackProcesses(feedback, number=2, deadline_s=900.0, on_death=count)
    seconds, verdicts = processes.judge(group).result()
    processes.close()

    The plug-in is pickled, so its class must be importable by the name of its module. The processes end when `close` is called
    and when the driver ends, even if the driver is killed.
    """

    def __init__(
        self, feedback: Feedback, *, number: int, deadline_s: float, on_death: Callable[[str], None] = lambda name: None
    ) -> None:
        """Start the processes.

        Args:
            feedback: the feedback plug-in.
            number: number of processes.
            deadline_s: time limit of a start, and of the verdicts of one group; a process that takes longer counts as dead.
            on_death: called with the name of every process that dies.

        Raises:
            ConfigError: the plug-in cannot be pickled, or its class cannot be imported in another process.
        """
        self._name = type(feedback).__name__
        try:
            pickled = pickle.dumps(feedback)
        except Exception as error:  # whatever the plug-in's fields raise
            raise ConfigError(f"feedback {self._name} cannot be taken to a process of its own: {error}") from error
        self._on_death = on_death
        self._closed = threading.Event()
        self._handles = [_ProcessHandle(f"feedback-{place}", pickled, deadline_s) for place in range(number)]
        self._idle: queue.SimpleQueue[_ProcessHandle] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="feedback")
        try:
            for handle in self._handles:
                handle.start()
            for handle in self._handles:
                handle.finish_start(self._name)
                self._idle.put(handle)
        except BaseException:
            self.close()
            raise

    def judge(self, group: RolloutGroup, feedback: Feedback) -> Future[Judged]:
        """Begin to judge a group. If two processes die while they judge it, all its verdicts are failed ones. The future raises
        an error of the plug-in.

        Args:
            feedback: the plug-in with the options of this round.
        """
        return self._threads.submit(self._judge, group, pickle.dumps(feedback))

    def pids(self) -> list[int]:
        """Ids of the processes."""
        return [handle.process.pid for handle in self._handles if handle.process is not None]

    def close(self) -> None:
        """End the processes, even in the middle of a group."""
        self._closed.set()
        for handle in self._handles:
            handle.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _judge(self, group: RolloutGroup, feedback: bytes) -> Judged:
        frame, handle = wire.encode_many([group]), self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                try:
                    answer = handle.judge(feedback, frame)
                except (EOFError, OSError) as error:
                    self._replace(handle, error)
                else:
                    return _read(answer, f"feedback {self._name}, prompt {group.prompt.id!r}")
            return 0.0, tuple(Verdict(failed=1) for _ in group.responses)
        finally:
            self._idle.put(handle)

    def _replace(self, handle: _ProcessHandle, error: Exception) -> None:
        if self._closed.is_set():
            raise CancelledError from error
        self._on_death(handle.process.name)
        handle.kill()
        handle.start()
        handle.finish_start(self._name)
        if self._closed.is_set():  # the pool was closed while the new process started
            handle.kill()
            raise CancelledError from error


class _ProcessHandle:
    """The handle of a process. It stays the same when the process dies and is replaced."""

    def __init__(self, name: str, pickled: bytes, deadline_s: float) -> None:
        self._name, self._pickled, self._deadline_s = name, pickled, deadline_s
        self.process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that the driver's threads hold
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self._pickled), name=self._name, daemon=True)
        self.process.start()
        other.close()

    def finish_start(self, plug_in: str) -> None:
        """Wait until the process has started.

        Args:
            plug_in: name of the plug-in, for the error message.

        Raises:
            ConfigError: the process cannot make the plug-in, or has not started in time.
        """
        try:
            error = self._receive()
        except (EOFError, OSError) as lost:
            raise ConfigError(f"feedback {plug_in}: its process did not start: {lost!r}") from lost
        if error is not None:
            raise ConfigError(f"feedback {plug_in} cannot be made in a process of its own: {error}")

    def judge(self, feedback: bytes, frame: bytes) -> _Answer:
        """Judge one group: send the pickled plug-in and the group's frame, and wait for the answer.

        Raises:
            EOFError, OSError: the process died, or missed its deadline.
        """
        self._connection.send_bytes(feedback)
        self._connection.send_bytes(frame)
        return self._receive()

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()

    def _receive(self) -> Any:
        if not self._connection.poll(self._deadline_s):
            raise TimeoutError(f"{self._name} did not answer within {self._deadline_s:g} s")
        return self._connection.recv()


def _read(answer: _Answer, what: str) -> Judged:
    """The result in the answer of a process.

    Args:
        what: note that is added to the plug-in's error, which names the plug-in and the prompt.

    Raises:
        Exception: the error of the plug-in.
    """
    seconds, verdicts, error = answer
    if error is None:
        return seconds, tuple(wire.decode_many(verdicts, Verdict))
    raised, told = error
    found = pickle.loads(raised) if raised else RuntimeError(told.strip().splitlines()[-1])
    found.add_note(what)
    raise found from RemoteTraceback(told)


def _serve(connection: Connection, pickled: bytes) -> None:
    """The main function of a process. It unpickles the plug-in, and then judges one group after the other until the
    connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    try:
        pickle.loads(pickled)
    except Exception as error:  # every error is reported to the driver
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            feedback, frame = connection.recv_bytes(), connection.recv_bytes()
        except EOFError:
            return
        connection.send(_answer(feedback, frame))


def _answer(feedback: bytes, frame: bytes) -> _Answer:
    started = time.monotonic()
    try:
        [group] = wire.decode_many(frame, RolloutGroup)
        verdicts = wire.encode_many(list(without_asking(pickle.loads(feedback).judge(group))))
        return time.monotonic() - started, verdicts, None
    except Exception as error:  # the driver raises it
        return 0.0, b"", (_pickled(error), traceback.format_exc())


def _pickled(error: Exception) -> bytes:
    """The pickled error; empty if it cannot be pickled and unpickled."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # the class of the error may raise anything while it is pickled or unpickled
        return b""
    return pickled


def _end_with_the_driver() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
