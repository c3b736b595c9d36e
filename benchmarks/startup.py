"""Seconds from the command to the first responses in the run's journal: `rlsys align preset=scenes` in a fresh process,
its models at hand.

The first evaluation (500 held-out scenes) is work and not start: the row with a target leaves it out, another row has it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks import device
from benchmarks.harness import Options, Row, Spread, Target
from benchmarks.processes import end_with_parent
from benchmarks.runs import GIVEN, scenes_models
from rlsys.journal import Journal
from rlsys.records import RolloutGroup

TARGET = Target(at_most=30.0)
DEADLINE_S = 300.0
POLL_S = 0.02
CASES = {
    "to the first responses": ("evaluations=none",),
    "with the first evaluation, of 500 scenes": (),
}
"""What is added to the command."""


def first_responses(command: Sequence[str], run: Path) -> float:
    """Seconds until the first group of a run is in its journal; the run is then ended.

    Raises:
        RuntimeError: the run has ended before; with its output.
        TimeoutError: it has no responses by the deadline.
    """
    started = time.monotonic()
    log = run.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=end_with_parent)
    try:
        while not _has_responses(run / "journal"):
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with status {process.returncode}: {log.read_text()}")
            if time.monotonic() - started > DEADLINE_S:
                raise TimeoutError(f"no responses within {DEADLINE_S:g} s")
            time.sleep(POLL_S)
        return time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _has_responses(journal: Path) -> bool:
    if not any(path.stat().st_size for path in journal.glob("round-0000.*")):
        return False
    return any(True for _ in Journal(journal, create=False).read(0, RolloutGroup))


def cases(options: Options) -> list[str]:
    """Names of all cases."""
    return list(CASES)


def rows(options: Options) -> Iterator[Row]:
    """Measure; a first start of each case is not counted."""
    policy, judge = scenes_models()
    with tempfile.TemporaryDirectory(prefix="rlsys-startup-") as scratch:
        # In the cache the command finds them by itself, as a user's does.
        given = [f"policy.model={policy}", f"engines.judge.model={judge}"] if GIVEN in os.environ else []
        common = [f"output.runs_dir={scratch}", *given]
        command = [sys.executable, "-m", "rlsys", "align", "preset=scenes", *device.cluster_words(), *common]
        for number, (case, words) in enumerate(CASES.items()):
            if not options.wants(case):
                continue
            names = [f"{number}-{turn}" for turn in range(1 + options.repeats)]
            taken = [first_responses([*command, f"name={name}", *words], Path(scratch) / name) for name in names]
            yield Row(case=case, ours=Spread.of(taken[1:]), unit="s", target=None if number else TARGET)
