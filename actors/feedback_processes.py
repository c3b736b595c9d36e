"""Feedback that asks no engine, in processes of its own: its computations must not hold up the driver's threads, which feed
engines and learner. No Ray in here: there is no device to book and nothing to wait for.
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
"""Deaths of a process that one group may cause before it counts as not judged."""

Judged = tuple[float, tuple[Verdict, ...]]
"""Seconds that the verdicts of a group took, and the verdicts."""


_Answer = tuple[float, bytes, tuple[bytes, str] | None]
"""Of a process: seconds, a frame of verdicts, and the plug-in's error, pickled if it can be, with its traceback."""


class RemoteTraceback(Exception):
    """Where in its process a plug-in failed; the cause of the error that the driver raises."""


class FeedbackProcesses:
    """Processes with a copy of a feedback plug-in each.

    processes = FeedbackProcesses(feedback, number=2, deadline_s=900.0, on_death=count)
    seconds, verdicts = processes.judge(group).result()
    processes.close()

    The plug-in travels by pickle: its class must be importable by its module's name. They end with `close`, and with the
    driver, however it ends.
    """

    def __init__(
        self, feedback: Feedback, *, number: int, deadline_s: float, on_death: Callable[[str], None] = lambda name: None
    ) -> None:
        """Start the processes.

        Args:
            deadline_s: for a start, and for the verdicts of one group; a process that takes longer counts as dead.
            on_death: called with the name of a process that died.

        Raises:
            ConfigError: the plug-in cannot be taken to another process.
        """
        self._name = type(feedback).__name__
        try:
            pickled = pickle.dumps(feedback)
        except Exception as error:  # whatever the plug-in's fields raise
            raise ConfigError(f"feedback {self._name} cannot be taken to a process of its own: {error}") from error
        self._on_death = on_death
        self._closed = threading.Event()
        self._slots = [_Slot(f"feedback-{place}", pickled, deadline_s) for place in range(number)]
        self._idle: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(number, thread_name_prefix="feedback")
        try:
            for slot in self._slots:
                slot.start()
            for slot in self._slots:
                slot.finish_start(self._name)
                self._idle.put(slot)
        except BaseException:
            self.close()
            raise

    def judge(self, group: RolloutGroup, feedback: Feedback) -> Future[Judged]:
        """Begin to judge a group. Responses that end two processes have failed verdicts; an error of the plug-in is raised.

        Args:
            feedback: as this round has it.
        """
        return self._threads.submit(self._judge, group, pickle.dumps(feedback))

    def pids(self) -> list[int]:
        """Of the processes."""
        return [slot.process.pid for slot in self._slots if slot.process is not None]

    def close(self) -> None:
        """End the processes, in the middle of a group too."""
        self._closed.set()
        for slot in self._slots:
            slot.kill()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _judge(self, group: RolloutGroup, feedback: bytes) -> Judged:
        frame, slot = wire.encode_many([group]), self._idle.get()
        try:
            for _ in range(ATTEMPTS):
                try:
                    answer = slot.judge(feedback, frame)
                except (EOFError, OSError) as error:
                    self._replace(slot, error)
                else:
                    return _read(answer, f"feedback {self._name}, prompt {group.prompt.id!r}")
            return 0.0, tuple(Verdict(failed=1) for _ in group.responses)
        finally:
            self._idle.put(slot)

    def _replace(self, slot: _Slot, error: Exception) -> None:
        if self._closed.is_set():
            raise CancelledError from error
        self._on_death(slot.process.name)
        slot.kill()
        slot.start()
        slot.finish_start(self._name)
        if self._closed.is_set():  # meanwhile
            slot.kill()
            raise CancelledError from error


class _Slot:
    """The place of a process, which is replaced when it dies."""

    def __init__(self, name: str, pickled: bytes, deadline_s: float) -> None:
        self._name, self._pickled, self._deadline_s = name, pickled, deadline_s
        self.process: Any = None
        self._connection: Connection | None = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy the driver's threads' locks
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self._pickled), name=self._name, daemon=True)
        self.process.start()
        other.close()

    def finish_start(self, plug_in: str) -> None:
        """
        Raises:
            ConfigError: the process cannot make the plug-in, or is not there in time.
        """
        try:
            error = self._receive()
        except (EOFError, OSError) as lost:
            raise ConfigError(f"feedback {plug_in}: its process did not start: {lost!r}") from lost
        if error is not None:
            raise ConfigError(f"feedback {plug_in} cannot be made in a process of its own: {error}")

    def judge(self, feedback: bytes, frame: bytes) -> _Answer:
        """
        Raises:
            EOFError, OSError: the process died, or is late.
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
    """
    Raises:
        Exception: what the plug-in raised.
    """
    seconds, verdicts, error = answer
    if error is None:
        return seconds, tuple(wire.decode_many(verdicts, Verdict))
    raised, told = error
    found = pickle.loads(raised) if raised else RuntimeError(told.strip().splitlines()[-1])
    found.add_note(what)
    raise found from RemoteTraceback(told)


def _serve(connection: Connection, pickled: bytes) -> None:
    """The process: makes the plug-in, then judges a group for every frame until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    threading.Thread(target=_end_with_the_driver, daemon=True).start()
    try:
        pickle.loads(pickled)
    except Exception as error:  # told to the driver, whatever it is
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
    except Exception as error:  # raised in the driver
        return 0.0, b"", (_pickled(error), traceback.format_exc())


def _pickled(error: Exception) -> bytes:
    """Empty if it does not survive the way."""
    try:
        pickled = pickle.dumps(error)
        pickle.loads(pickled)
    except Exception:  # an exception's class may do anything
        return b""
    return pickled


def _end_with_the_driver() -> None:
    wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
