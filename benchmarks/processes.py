"""Sides in processes of their own, which stand still while the other side is measured."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import psutil

from benchmarks.device import whole_machine
from benchmarks.harness import Spread, in_turn
from rlsys.report.progress import quiet_libraries

START_S = 3600.0
"""How long a process may take to be ready; trials of settings, each compiled, take a quarter of an hour."""
END_S = 10.0
"""How long a process that should end may take, before it is killed."""
READY = "ready"
ANSWER, FAILURE = "answer", "failure"
"""What a process sends: one of these, and a value."""
PR_SET_PDEATHSIG = 1
"""Linux: which signal a process gets when the one that started it is gone."""


def received(pipe: Any) -> Any:
    """The next answer of a process.

    Raises:
        RuntimeError: it failed; with its traceback.
        EOFError: it is gone.
    """
    kind, value = pipe.recv()
    if kind == FAILURE:
        raise RuntimeError(value)
    return value


@contextmanager
def failures_sent(pipe: Any) -> Iterator[None]:
    """In the other process: what goes wrong in here is raised by `received`, if the program is still there."""
    with suppress(ConnectionError):
        try:
            yield
        except BaseException:
            pipe.send((FAILURE, traceback.format_exc()))


class Halted:
    """Processes that stand still until `end`, or until this program is gone.

    A process that stands still cannot see that the program was killed, and the kernel sends no signal to engines, which are
    children of Ray. A shell of a session of its own therefore waits for the program, and then lets them go on.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._pids = list(pids)
        words = ["sh", "-c", 'read _; kill -CONT "$@" 2>/dev/null', "guard", *map(str, self._pids)]
        self._guard = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)
        _each(self._pids, psutil.Process.suspend)

    def end(self) -> None:
        """Let them go on."""
        _each(self._pids, psutil.Process.resume)
        self._guard.communicate()


@contextmanager
def stopped(pids: Iterable[int]) -> Iterator[None]:
    """These processes stand still within: an engine or a rank that only waits still wakes up a hundred times a second to
    look whether something came.
    """
    halted = Halted(pids)
    try:
        yield
    finally:
        halted.end()


def end_with_parent(number: int = signal.SIGINT) -> None:
    """Let the kernel send this process a signal when its parent is gone; SIGINT ends a program so that it cleans up."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)


class Child:
    """A process of its own with the whole machine's cores, which answers what it is told, one message at a time. Between
    answers it stands still, with all processes that it has started.
    """

    def __init__(self, serve: Callable[..., None], *arguments: Any, stops: bool = True) -> None:
        """Start the process.

        Args:
            serve: called in the other process with its end of the pipe and `arguments`; sends a first answer when it is
                ready, then one to each message.
            stops: whether the process stands still between answers. To let it go on takes a few milliseconds.
        """
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, serve, *arguments))
        self._process.start()
        theirs.close()
        self._serve, self._stops, self._first = serve, stops, None
        self._halted: Halted | None = None

    def first(self) -> Any:
        """The first answer, when the process is ready.

        Raises:
            TimeoutError: the process does not start.
            RuntimeError: as `received`.
        """
        if self._first is None:
            if not self._pipe.poll(START_S):
                raise TimeoutError(f"{self._serve.__qualname__} did not start within {START_S:g} s")
            self._first = (self.hear(),)
        return self._first[0]

    def say(self, message: Any) -> Any:
        """The answer to a message.

        Raises:
            TimeoutError, RuntimeError: as `first`.
        """
        self.tell(message)
        return self.hear()

    __call__ = say

    def pids(self) -> list[int]:
        """None: the process stands still by itself when it has answered, and nothing is counted while it starts."""
        return []

    def tell(self, message: Any) -> None:
        """Let the process go on with a message."""
        self.first()
        self._go_on()
        self._pipe.send(message)

    def hear(self) -> Any:
        """The next answer."""
        try:
            return received(self._pipe)
        finally:
            self._halted = Halted(self._pids()) if self._stops else None

    def close(self) -> None:
        """End the process, and those that it has started, which may not see that their parent is gone."""
        pids = self._pids()
        self._go_on()
        self._pipe.close()  # it waits for a message, finds that none will come, and cleans up
        self._process.join(END_S)
        _each(pids, psutil.Process.kill)
        self._process.join()

    def _go_on(self) -> None:
        if self._halted is not None:
            self._halted.end()
            self._halted = None

    def _pids(self) -> list[int]:
        """Ids of the process and of the processes that it has started."""
        try:
            process = psutil.Process(self._process.pid)
            return [process.pid, *(child.pid for child in process.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []


def _each(pids: Iterable[int], do: Callable[[psutil.Process], None]) -> None:
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            do(psutil.Process(pid))


def serve_turns(pipe: Any, opened: Callable[..., Callable[[int], Any]], *arguments: Any) -> None:
    """Answers with what a function, which `opened` makes of the arguments, returns for the number of a turn.

    Child(serve_turns, open_work, argument)
    """
    work = opened(*arguments)
    pipe.send((ANSWER, READY))
    while True:
        pipe.send((ANSWER, work(pipe.recv())))


def compare(ours: Any, other: Any, *, repeats: int) -> tuple[tuple[Spread, Spread, Spread], list[Any], list[Any]]:
    """Let both sides do turns 0, 1, ... and close them. The side that waits stands still.

    Args:
        ours, other: a `Child`, or an object of this process whose actors work: it is called with a turn's number, and
            has `pids` (what has to be stopped while the other side is measured) and `close`. A turn's result has a `speed`.

    Returns:
        What `harness.in_turn` says of the speeds, and what ours and the other side returned, turn by turn.
    """
    done: tuple[list[Any], list[Any]] = ([], [])

    def side(number: int, work: Any, waiting: Any) -> float:
        with stopped(waiting.pids()):
            done[number].append(work(len(done[number])))
        return done[number][-1].speed

    with ExitStack() as stack:
        for work in (ours, other):
            stack.callback(work.close)
        speeds = in_turn(lambda: side(0, ours, other), lambda: side(1, other, ours), repeats=repeats)
    return speeds, *done


def _run(pipe: Any, serve: Callable[..., None], *arguments: Any) -> None:
    # If the program is killed nobody lets this process go on, so that it would never see that its pipe is closed.
    end_with_parent(signal.SIGCONT)
    quiet_libraries()
    warnings.filterwarnings("ignore")
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    # Inductor puts what follows `--only` between quotes in the code it writes: an apostrophe there would end it.
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
