"""How many cores each stage of a run keeps busy, on machines where cores are the limit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import psutil


class CoreClock:
    """Cores that groups of processes keep busy, measured lap by lap.

    clock = CoreClock({"rollout": rollouts.pids, "learn": learner.pids})
    work()
    clock.lap()        # {"rollout": 0.9, "learn": 0.4}: mean number of cores since the clock was made
    """

    def __init__(self, groups: Mapping[str, Callable[[], Iterable[int]]]) -> None:
        """
        Args:
            groups: for every name, a function that returns the ids of the processes on this machine that belong to it now.
        """
        self._groups = groups
        self._before = self._read()
        self._began = time.monotonic()

    def lap(self) -> dict[str, float]:
        """Mean number of busy cores per group since the last lap. A process that started meanwhile counts from its start; one
        that ended does not count.
        """
        after, now = self._read(), time.monotonic()
        before, began = self._before, self._began
        self._before, self._began = after, now
        return {
            name: sum(spent - before[name].get(pid, 0.0) for pid, spent in processes.items()) / (now - began)
            for name, processes in after.items()
        }

    def _read(self) -> dict[str, dict[int, float]]:
        """Seconds of CPU time of every process."""
        found: dict[str, dict[int, float]] = {}
        for name, pids in self._groups.items():
            found[name] = {}
            for pid in pids():
                with suppress(psutil.NoSuchProcess):  # the process ended; another will take its place
                    times = psutil.Process(pid).cpu_times()
                    found[name][pid] = times.user + times.system
        return found
