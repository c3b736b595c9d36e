"""Sides in processes of their own: how results and failures come across, and one that takes up jobs."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from rlsys.placement import Placement
from rlsys.placement.machine import this_machine
from rlsys.report.progress import quiet_libraries

START_S = 600.0
"""How long a process may take to be ready; compiling a model takes minutes."""
END_S = 10.0
"""How long one that was told to end may take, before it is killed."""
READY = "ready"
END = "end"
"""The question that ends a job."""
ANSWER, NO_MEMORY, FAILURE = "answer", "no memory", "failure"
"""What a process sends: one of these, and a value."""
PR_SET_PDEATHSIG = 1
"""Linux: which signal a process gets when the one that started it is gone."""


def received(pipe: Any) -> Any:
    """The next answer of a process.

    Raises:
        MemoryError: the GPU is too small for it.
        RuntimeError: it failed otherwise; with its traceback.
        EOFError: it is gone.
    """
    kind, value = pipe.recv()
    if kind == NO_MEMORY:
        raise MemoryError(value)
    if kind == FAILURE:
        raise RuntimeError(value)
    return value


@contextmanager
def failures_sent(pipe: Any) -> Iterator[None]:
    """In the other process: what goes wrong in here is raised by `received`, if anybody is still there."""
    import torch

    with suppress(ConnectionError):
        try:
            yield
        except torch.OutOfMemoryError as error:
            pipe.send((NO_MEMORY, str(error)))
        except BaseException:
            pipe.send((FAILURE, traceback.format_exc()))


def whole_machine() -> Placement:
    """All cores of this machine, or what a quota leaves of them, with as many threads."""
    machine = this_machine()
    return Placement(num_cpus=machine.num_cpus, cores=machine.cores, num_threads=max(1, int(machine.num_cpus)))


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """These processes stand still within: an engine or a rank that only waits still wakes up a hundred times a second to look
    whether something came.
    """
    _each(pids, psutil.Process.suspend)
    try:
        yield
    finally:
        _each(pids, psutil.Process.resume)


class Child:
    """A process of its own with the whole machine's cores, which answers what it is told, one message at a time. Between
    answers it stands still, with all processes that it has started.
    """

    def __init__(self, serve: Callable[..., None], work: Callable[..., Any], *arguments: Any) -> None:
        """Start the process; the first message waits until it is ready.

        Args:
            serve: called in the other process with its end of the pipe, `work` and `arguments`; sends `READY`, then an
                answer to each message.
            work: what the process is for.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, serve, work, *arguments))
        self._process.start()
        theirs.close()
        self._work, self._ready = work, False

    def say(self, message: Any) -> Any:
        """The answer to a message.

        Raises:
            TimeoutError: the process does not start.
            MemoryError, RuntimeError: as `received`.
        """
        if not self._ready and not self._pipe.poll(START_S):
            raise TimeoutError(f"{self._work.__qualname__} did not start within {START_S:g} s")
        self._ready = self._ready or received(self._pipe) == READY
        _each(self._pids(), psutil.Process.resume)
        self._pipe.send(message)
        try:
            return received(self._pipe)
        finally:
            _each(self._pids(), psutil.Process.suspend)

    def close(self) -> None:
        """End the process, and those that it has started, which may not see that their parent is gone."""
        pids = self._pids()
        _each(pids, psutil.Process.resume)
        self._pipe.close()  # it waits for a message, finds that none will come, and cleans up
        self._process.join(END_S)
        _each(pids, psutil.Process.kill)
        self._process.join()

    def _pids(self) -> list[int]:
        """Of the process, and of those that it has started."""
        try:
            process = psutil.Process(self._process.pid)
            return [process.pid, *(child.pid for child in process.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []


def _each(pids: Iterable[int], do: Callable[[psutil.Process], None]) -> None:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            do(psutil.Process(pid))


class JobSide(Child):
    """A child process that takes up one job after another, and answers questions about it one at a time."""

    def __init__(self, serve: Callable[[Any, Any], None]) -> None:
        super().__init__(_jobs, serve)

    def begin(self, job: Any) -> Any:
        """Give the process a job; returns, when it is ready for questions, what it has to say of itself."""
        return self.say(job)

    def ask(self, question: str) -> Any:
        """
        Raises:
            MemoryError, RuntimeError: as `received`.
        """
        return self.say(question)

    def end(self) -> None:
        """The job is done."""
        self.say(END)


def _jobs(pipe: Any, serve: Callable[[Any, Any], None]) -> None:
    pipe.send((ANSWER, READY))
    while True:
        serve(pipe, pipe.recv())
        pipe.send((ANSWER, None))


def _run(pipe: Any, serve: Callable[..., None], *arguments: Any) -> None:
    # If the program is killed nobody lets this process go on, so that it would never see that its pipe is closed.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGCONT)
    quiet_libraries()
    warnings.filterwarnings("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    # Inductor puts what follows `--only` between quotes in the code it writes: a case's apostrophe would end it.
    sys.argv = sys.argv[:1]
    placement = whole_machine()
    placement.apply()
    import torch

    torch.set_num_threads(placement.num_threads)
    with failures_sent(pipe):
        try:
            serve(pipe, *arguments)
        finally:  # what it has started stands still yet if the program was killed
            _each((child.pid for child in psutil.Process().children(recursive=True)), psutil.Process.resume)
