"""Sides in processes of their own: how results and failures come across, and one that takes up jobs."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

END = "end"
"""The question that ends a job."""
ANSWER, NO_MEMORY, FAILURE = "answer", "no memory", "failure"
"""What a process sends: one of these, and a value."""


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
    """In the other process: what goes wrong in here is raised by `received`."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        pipe.send((NO_MEMORY, str(error)))
    except BaseException:
        pipe.send((FAILURE, traceback.format_exc()))


class JobSide:
    """A child process that takes up one job after another, and answers questions about it one at a time."""

    def __init__(self, serve: Callable[[Any, Any], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(serve, theirs))
        self._process.start()

    def ask(self, question: str) -> Any:
        """
        Raises:
            MemoryError, RuntimeError: as `received`.
        """
        return self._say(question)

    def begin(self, job: Any) -> Any:
        """Give the process a job; returns, when it is ready for questions, what it has to say of itself."""
        return self._say(job)

    def end(self) -> None:
        """The job is done."""
        self._say(END)

    def _say(self, message: Any) -> Any:
        self._pipe.send(message)
        return received(self._pipe)

    def close(self) -> None:
        """End the process, and those that it has started: one that stands still does not see that its parent is gone."""
        started = psutil.Process(self._process.pid).children(recursive=True) if self._process.is_alive() else []
        for process in (self._process, *started):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.join()


def _run(serve: Callable[[Any, Any], None], pipe: Any) -> None:
    threads = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore")
    # Inductor puts what follows `--only` between quotes in the code it writes: a case's apostrophe would end it.
    sys.argv = sys.argv[:1]
    import torch

    torch.set_num_threads(threads)
    with failures_sent(pipe):
        while True:
            serve(pipe, pipe.recv())
            pipe.send((ANSWER, None))
