"""`rlsys bench`: a few real rounds of your own model, cluster and schedule, and where their time went."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rlsys import files
from rlsys.app import config as configuration
from rlsys.app.assembly import assembled
from rlsys.app.cluster import cluster
from rlsys.app.models import critic_folder, policy_folder
from rlsys.app.parts import Host
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
STAGES = ("rollout", "feedback", "learn", "sync", "checkpoint")
OVERLAPPED = ("rollout", "feedback", "learn")
"""Stages that run at the same time; the weight update comes after them, and the checkpoint is written while the next round's
answers begin."""
WORTH_A_WORD = 0.1
"""Share of a round from which on a stage that comes after the others is named."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A stage's part in a round, medians over the measured rounds."""

    name: str
    seconds: float
    """Busy, mean over its workers."""
    work: float
    unit: str

    @property
    def rate(self) -> float:
        return self.work / self.seconds if self.seconds else 0.0


def stages(reports: Sequence[RoundReport], work: Sequence[dict[str, float]]) -> list[Stage]:
    """What every stage did in the middle one of the measured rounds.

    Args:
        work: per round, `tokens` answered and `critiques` written.
    """

    def middle(values: Sequence[float]) -> float:
        return float(median(values))

    done = {
        "rollout": (middle([counts["tokens"] for counts in work]), "tokens"),
        "feedback": (middle([counts["critiques"] for counts in work]), "critiques"),
        "learn": (middle([report.num_pairs for report in reports]), "pairs"),
        "sync": (middle([report.sync.num_bytes / 1e6 for report in reports]), "MB"),
        "checkpoint": (1.0, "checkpoints"),
    }
    return [
        Stage(name=name, seconds=middle([report.seconds[name] for report in reports]), work=amount, unit=unit)
        for name, (amount, unit) in done.items()
    ]


def advice(found: Sequence[Stage], round_seconds: float) -> str:
    """Where the time goes, in a sentence or two."""
    by_name = {stage.name: stage.seconds for stage in found}
    slowest = max(OVERLAPPED, key=by_name.__getitem__)
    shares = {name: by_name[name] / round_seconds for name in ("sync", "checkpoint")}
    text = f"{slowest} is the slowest stage: {by_name[slowest] / round_seconds:.0%} of a round. "
    idle = 1 - by_name["learn"] / round_seconds
    if slowest == "learn":
        text += "Give the learner more cores or GPUs (learner.num_ranks), freeze the vision tower, or take fewer pairs."
    else:
        role = "rollout" if slowest == "rollout" else "critic"
        text += f"More {role} actors ({role}.num_actors) or cores would shorten it; the learner waits {idle:.0%} of the time."
    if shares["sync"] > WORTH_A_WORD:
        text += f" sync takes {shares['sync']:.0%}, and nothing runs beside it."
    if shares["checkpoint"] > WORTH_A_WORD:
        text += (
            f" checkpoint takes {shares['checkpoint']:.0%}; the next round is answered meanwhile, and trained after it."
        )
    return text


def table(found: Sequence[Stage], round_seconds: float) -> str:
    """The stages of a round, one per line."""
    lines = [f"{'stage':11} {'busy s':>8} {'of round':>9}  {'work':>20} {'rate':>20}"]
    for stage in found:
        work = f"{stage.work:,.0f} {stage.unit}"
        rate = f"{stage.rate:,.1f} {stage.unit}/s"
        lines.append(
            f"{stage.name:11} {stage.seconds:8.2f} {stage.seconds / round_seconds:9.0%}  {work:>20} {rate:>20}"
        )
    slowest = max(stage.seconds for stage in found if stage.name in OVERLAPPED)
    lines.append(f"{'round':11} {round_seconds:8.2f}  = {round_seconds / slowest:.2f} x the slowest stage")
    return "\n".join(lines)


def measure(config: Any, directory: Path) -> dict[str, Any]:
    """Run the first rounds of a schedule, without evaluation, and report on all but the first."""
    schedule = config.schedule.build().cut(WARMUP + MEASURED)
    config = replace(config, eval=replace(config.eval, every=0))
    gate = MetricGate(config=GateConfig())
    with cluster(config.ray_address) as machine, Progress() as progress:
        host = Host(machine=machine, progress=progress)
        policy = policy_folder(config, host)
        critic = critic_folder(config, host, policy)
        built = assembled(config, host, directory, schedule=schedule, policy=policy, critic=critic, gate=gate)
        with built as (parts, _):
            reports = []
            for report in run_rounds(parts):
                reports.append(report)
                progress.round_done(report)
    measured = reports[WARMUP:] or reports
    journal = Journal(directory / "journal")
    found = stages(measured, [_work(journal, report.round) for report in measured])
    round_seconds = float(median([report.seconds["round"] for report in measured]))
    print(table(found, round_seconds))
    print(advice(found, round_seconds))
    return {
        "rounds": len(measured),
        "round_seconds": round_seconds,
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
