"""`rlsys bench`: run a few real rounds with your own model, cluster and schedule, and report where their time went."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from configs.sections import ScheduleConfig
from rlsys.app import plan as planning
from rlsys.app.align import dry_run
from rlsys.app.assembly import assembled
from rlsys.app.breakdown import advice, spread, stages, table
from rlsys.app.command import run_with_host
from rlsys.app.cores import CoreClock
from rlsys.app.models import role_folders
from rlsys.app.starting import Context
from rlsys.common import files
from rlsys.journal import Journal
from rlsys.records import RoundReport, ScoredGroup
from rlsys.report.metrics import plain, versions
from rlsys.rounds import run_rounds
from rlsys.schedules.gate import GateConfig, MetricGate
from rlsys.schedules.phases import Schedule

MEASURED = 3
"""Rounds whose time is reported."""
WARMUP = 1
"""Rounds before the measured ones: engines compile, caches fill and connections are made in them."""


class FirstRounds(ScheduleConfig):
    """A schedule cut to the rounds that the benchmark runs; each round keeps its plan."""

    def build(self) -> Schedule:
        return super().build().cut(WARMUP + MEASURED)


def first_rounds(config: Any) -> Any:
    """The configuration of the first rounds of a run, without evaluation."""
    return replace(
        config,
        schedule=FirstRounds(**vars(config.schedule)),
        # Both are replaced together, because the gate's rules need evaluated rounds.
        eval=replace(config.eval, every=0),
        gate=GateConfig(),
        # 0 would keep all checkpoints. The benchmark is never resumed, and an optimizer's state may be large.
        output=replace(config.output, keep_checkpoints=max(1, config.output.keep_checkpoints)),
    )


def measure(config: Any, context: Context) -> dict[str, Any]:
    """Run the rounds of a configuration and report on all but the first; if there is only one round, report on that one.

    Args:
        config: made by `first_rounds`.
        context: the machine and the display of progress.

    Raises:
        ConfigError: there are fewer prompts than the rounds take.
        ResourceError: the actors do not fit.
    """
    machine = context.machine
    planning.check(config, machine)
    with _folder(config) as directory:
        reports, laps = _run(config, context, directory)
        measured = reports[WARMUP:] or reports
        journal = Journal(directory / "journal")
        work = [_work(journal, report.round) for report in measured]
    is_local = len(machine.nodes) <= 1
    found = stages(measured, work, laps[-len(measured) :] if is_local else ())
    seconds = [report.seconds["round"] for report in measured]
    round_seconds = float(median(seconds))
    print(table(found, round_seconds))
    print(spread(seconds, warm=len(reports) > WARMUP))
    num_cores = machine.num_cpus if is_local and not machine.num_gpus else 0.0
    print(advice(found, round_seconds, judges=bool(config.feedback.roles), num_cores=num_cores))
    print("Evaluations are left out.")
    return {
        "rounds": len(measured),
        "round_seconds": round_seconds,
        "seconds_of_each": seconds,
        "after_warmup": len(reports) > WARMUP,
        "stages": [{**asdict(stage), "rate": stage.rate} for stage in found],
        "machine": asdict(machine),
        "versions": versions(),
    }


@contextmanager
def _folder(config: Any) -> Iterator[Path]:
    """A temporary run folder inside the folder of runs, for the time of a `with` block: all nodes see that place, and it has
    room for a run.
    """
    runs = Path(config.output.runs_dir).absolute()
    runs.mkdir(parents=True, exist_ok=True)
    # A file server may hold files for a moment after the actors that opened them have ended; the result matters more than the
    # removal of those files.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=runs, ignore_cleanup_errors=True) as directory:
        yield Path(directory)


def _run(config: Any, context: Context, directory: Path) -> tuple[list[RoundReport], list[dict[str, float]]]:
    """Run all rounds. Returns their reports, and for every round the cores that its stages kept busy."""
    models = role_folders(config, context)
    schedule, gate = config.schedule.build(), MetricGate(config=config.gate)
    reports: list[RoundReport] = []
    laps: list[dict[str, float]] = []
    built = assembled(config, context, directory, schedule=schedule, models=models, gate=gate)
    with built as (parts, _):
        clock = CoreClock(
            {"rollout": parts.rollouts.pids, "feedback": parts.feedback.pids, "learn": parts.learner.pids}
        )
        for report in run_rounds(parts):
            laps.append(clock.lap())
            reports.append(report)
            context.progress.round_done(report)
    return reports, laps


def _work(journal: Journal, round: int) -> dict[str, float]:
    tokens = critiques = 0
    for scored in journal.read(round, ScoredGroup):
        tokens += sum(len(rollout.token_ids) * rollout.count for rollout in scored.group.responses)
        critiques += sum(len(verdict.critiques) + verdict.failed for verdict in scored.verdicts)
    return {"tokens": tokens, "critiques": critiques}


def main(words: list[str]) -> int:
    """Measure, print the result, and write it to `bench.json` (`out=<file>` writes it elsewhere); `dry_run=true` only prints
    the plan. Returns the exit status.
    """
    outs = [override.removeprefix("out=") for override in words if override.startswith("out=")]
    words = [override for override in words if not override.startswith("out=")]

    def body(config: Any, context: Context) -> None:
        found = measure(first_rounds(config), context)
        out = Path(outs[-1] if outs else "bench.json")
        files.replace(out, json.dumps({**plain(found), "command": words}, indent=1, allow_nan=False) + "\n")
        print(f"written to {out}")

    return run_with_host(words, body, plan=lambda config: dry_run(first_rounds(config)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
