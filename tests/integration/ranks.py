"""Processes that run a function on every rank, so that tests of the learner leave nothing behind in the test's own
process.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

from learners.rendezvous import Rendezvous

DEADLINE_S = 180.0


class Ranks:
    """Persistent rank processes: `ranks.run(function, *args)` calls `function(rendezvous, *args)` in each, at once."""

    def __init__(self, world_size: int) -> None:
        context = multiprocessing.get_context("spawn")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._pipes, self._processes = [], []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            meeting = Rendezvous(rank=rank, world_size=world_size, address="127.0.0.1", port=port)
            process = context.Process(target=_serve, args=(theirs, meeting), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Results of all ranks, in order; the first failure is raised with its traceback."""
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            assert pipe.poll(DEADLINE_S), f"rank {rank} did not answer within {DEADLINE_S:g} s"
            answers.append(pipe.recv())
        for kind, value in answers:
            assert kind == "result", value
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.join(10)


def _serve(pipe: Any, meeting: Rendezvous) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    while True:
        function, arguments = pipe.recv()
        try:
            pipe.send(("result", function(meeting, *arguments)))
        except BaseException:
            pipe.send(("failure", traceback.format_exc()))
