"""`rlsys bench`: a few real rounds of your own model, cluster and schedule, and where their time went."""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from rlsys import files
from rlsys.app import config as configuration
from rlsys.app.assembly import assembled
from rlsys.app.breakdown import advice, spread, stages, table
from rlsys.app.cluster import cluster
from rlsys.app.cores import CoreClock
from rlsys.app.models import critic_folder, policy_folder
from rlsys.app.starting import Host
from rlsys.journal import Journal
from rlsys.metrics import plain, versions
from rlsys.progress import Progress, quiet_libraries
from rlsys.records import RoundReport, ScoredGroup
from rlsys.rounds import run_rounds
from rlsys.schedules.gate import GateConfig, MetricGate

MEASURED = 3
"""Rounds whose time is reported."""
WARMUP = 1
"""Rounds before them: engines compile, caches fill, connections are made."""


def measure(config: Any, directory: Path) -> dict[str, Any]:
    """Run the first rounds of a schedule, without evaluation, and report on all but the first, if there are more."""
    schedule = config.schedule.build().cut(WARMUP + MEASURED)
    # Together: the gate's rules need evaluated rounds.
    config = replace(config, eval=replace(config.eval, every=0), gate=GateConfig())
    reports: list[RoundReport] = []
    laps: list[dict[str, float]] = []
    with cluster(config.ray_address) as machine, Progress() as progress:
        host = Host(machine=machine, progress=progress)
        policy = policy_folder(config, host)
        critic = critic_folder(config, host, policy)
        gate = MetricGate(config=config.gate)
        built = assembled(config, host, directory, schedule=schedule, policy=policy, critic=critic, gate=gate)
        with built as (parts, _):
            clock = CoreClock(
                {"rollout": parts.rollouts.pids, "feedback": parts.feedback.pids, "learn": parts.learner.pids}
            )
            for report in run_rounds(parts):
                laps.append(clock.lap())
                reports.append(report)
                progress.round_done(report)
    measured = reports[WARMUP:] or reports
    journal = Journal(directory / "journal")
    is_local = len(machine.nodes) <= 1
    work = [_work(journal, report.round) for report in measured]
    found = stages(measured, work, laps[-len(measured) :] if is_local else ())
    seconds = [report.seconds["round"] for report in measured]
    round_seconds = float(median(seconds))
    print(table(found, round_seconds))
    print(spread(seconds, warm=len(reports) > WARMUP))
    num_cores = machine.num_cpus if is_local and not machine.num_gpus else 0.0
    print(advice(found, round_seconds, judges=config.feedback.needs_engine, num_cores=num_cores))
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


def _work(journal: Journal, round: int) -> dict[str, float]:
    tokens = critiques = 0
    for scored in journal.read(round, ScoredGroup):
        tokens += sum(len(rollout.token_ids) * rollout.count for rollout in scored.group.rollouts)
        critiques += sum(len(verdict.critiques) + verdict.failed for verdict in scored.verdicts)
    return {"tokens": tokens, "critiques": critiques}


def main(words: list[str]) -> int:
    """Measure, print, and write `bench.json` (`out=<file>` writes it elsewhere). Returns the exit status."""
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    words = [word for word in words if not word.startswith("out=")]

    def body(config: Any, tree: Any) -> int:
        quiet_libraries()
        with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as directory:
            found = measure(config, Path(directory))
        out = Path(outs[-1] if outs else "bench.json")
        files.replace(out, json.dumps({**plain(found), "command": words}, indent=1, allow_nan=False) + "\n")
        print(f"written to {out}")
        return 0

    return configuration.run_command(words, body)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
