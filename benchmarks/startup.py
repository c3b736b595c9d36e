"""Seconds from the command to the first answers in the run's journal: `rlsys align preset=scenes` in a fresh process,
its models at hand.

The first evaluation (500 held-out scenes) is work and not start: the row with a target leaves it out, another row has
it. One more run, with a clock at its milestones, shows where the time goes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.arguments import parse
from benchmarks.harness import Row, Spread, Target, write
from benchmarks.models import GIVEN, scenes_models
from rlsys.journal import Journal
from rlsys.records import RolloutGroup

TARGET = Target(at_most=30.0)
DEADLINE_S = 300.0
POLL_S = 0.02
PARTS = ("start_rollouts", "start_feedback", "start_learner")
MILESTONES = {
    "configuration": "imports and configuration",
    "cluster": "Ray is up",
    "start_rollouts": "policy's engine is up",
    "start_feedback": "critic's engine is up",
    "start_learner": "learner is up",
}


def first_answers(command: Sequence[str], run: Path) -> float:
    """Seconds until the first group of a run is in its journal; the run is then ended."""
    started = time.monotonic()
    log = run.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    try:
        while not _has_answers(run / "journal"):
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with status {process.returncode}: {log.read_text()}")
            if time.monotonic() - started > DEADLINE_S:
                raise TimeoutError(f"no answers within {DEADLINE_S:g} s")
            time.sleep(POLL_S)
        return time.monotonic() - started
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _has_answers(journal: Path) -> bool:
    if not any(path.stat().st_size for path in journal.glob("round-0000.*")):
        return False
    return any(True for _ in Journal(journal, create=False).read(0, RolloutGroup))


def traced(milestones: str, words: Sequence[str]) -> int:
    """Run the command with a clock at its milestones, seconds since the process began; a file has them at its end."""
    began = psutil.Process().create_time()
    found: dict[str, float] = {}

    def mark(name: str) -> None:
        found[name] = time.time() - began

    from rlsys.app import align, assembly

    def clocked(name: str, start: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            part = start(*arguments, **options)
            mark(name)
            return part

        return run

    @contextmanager
    def cluster(address: str | None, *, inner: Any = align.cluster) -> Iterator[Any]:
        mark("configuration")
        with inner(address) as machine:
            mark("cluster")
            yield machine

    align.cluster = cluster
    for name in PARTS:
        setattr(assembly, name, clocked(name, getattr(assembly, name)))
    status = align.main(list(words))
    Path(milestones).write_text(json.dumps(found))
    return status


def measure(repeats: int) -> list[Row]:
    """The lines of the table."""
    policy, critic = scenes_models()
    plain = [sys.executable, "-m", "rlsys", "align"]
    with tempfile.TemporaryDirectory() as scratch:
        # In the cache it finds them by itself, as a user's command does.
        given = [f"policy.model={policy}", f"critic.model={critic}"] if GIVEN in os.environ else []
        common = ["preset=scenes", f"output.runs_dir={scratch}", *given]

        def once(name: str, *words: str, command: Sequence[str] = plain) -> float:
            return first_answers([*command, *common, f"name={name}", *words], Path(scratch) / name)

        bare = [once(f"bare-{number}", "evaluation=none") for number in range(repeats + 1)][1:]
        whole = [once(f"whole-{number}") for number in range(repeats)]
        milestones = Path(scratch) / "milestones.json"
        program = f"import sys; from benchmarks.startup import traced; traced({str(milestones)!r}, sys.argv[1:])"
        first = once("traced", "evaluation=none", command=[sys.executable, "-c", program])
        seen = json.loads(milestones.read_text())
    extra = {title: seen[name] for name, title in MILESTONES.items() if name in seen} | {"first answers": first}
    ours = Spread.of(bare)
    note = "" if TARGET.met(ours.median) else _why(seen)
    return [
        Row(case="to the first answers", ours=ours, unit="s", target=TARGET, note=note, extra=extra),
        Row(case="with the first evaluation, of 500 scenes", ours=Spread.of(whole), unit="s"),
    ]


def _why(seen: dict[str, float]) -> str:
    """
    Args:
        seen: the milestones of one start.
    """
    policy = seen["start_rollouts"] - seen["cluster"]
    return (
        f"in a start with a clock Ray was up after {seen['cluster']:.3g} s; the policy's engine took {policy:.3g} s more, "
        "while the other parts of the run import and load on what cores it leaves"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure."""
    options = parse(__doc__.splitlines()[0], words)
    rows = measure(options.repeats)
    write("startup", "startup: seconds from the command to the first answers", rows, repeats=options.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
