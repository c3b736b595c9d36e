"""A side that has a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

END = "end"
"""The question that ends a job."""


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
            RuntimeError: the process failed; with its traceback.
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
        kind, value = self._pipe.recv()
        if kind == "failure":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the process."""
        self._process.kill()
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
    try:
        while True:
            serve(pipe, pipe.recv())
            pipe.send(("answer", None))
    except BaseException:
        pipe.send(("failure", traceback.format_exc()))
