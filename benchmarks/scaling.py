"""Does a round of ten times the prompts take ten times as long, and the driver no more memory?

The real loop (`rlsys.rounds.run_rounds`), the real rollout and feedback stages in Ray actors, the real journal and
checkpoints. A scripted engine stands in the place of vLLM, so that what is measured is everything around a model, and a
learner that only counts the pairs it takes: a real one needs minutes for the pairs of 10 000 prompts. Every round runs in a
process of its own, after a small one that is not counted. The largest, which takes a minute, stands between two of the next
size, so that a drift of the machine's speed cancels out of their ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Options, Row, Spread, Target
from benchmarks.processes import end_with_parent
from benchmarks.runs import Silent
from rlsys.records import FitReport, PreferencePair, RoundPlan, SyncReport

SMALL, MIDDLE, LARGE = PROMPTS = (100, 1000, 10_000)
ORDER = (SMALL, MIDDLE, LARGE, MIDDLE)
"""The rounds of a turn; every other turn goes the other way."""
WARM_UP = 50
RESPONSES = 4
MAX_TOKENS = 16
JOURNAL = "journal"
TARGET = Target(at_most=1.1)
MEASURES = {
    "time per prompt": ("seconds", "ms", True),
    "CPU time of driver and actors per prompt": ("cpu_seconds", "ms", True),
    "driver's peak memory": ("driver_mib", "MiB", False),
    "rollout actor's peak memory": ("rollout_mib", "MiB", False),
    "judge actor's peak memory": ("judge_mib", "MiB", False),
    "journal per prompt": ("journal_mib", "MiB", True),
}
"""For every case: the figure, its unit, and whether it is divided by the number of prompts."""


class CountingLearner:
    """Takes pairs and counts them."""

    def fit(self, pairs: Iterable[PreferencePair], plan: RoundPlan, *, version: int) -> FitReport:
        """Nothing is learned."""
        count = sum(1 for _ in pairs)
        return FitReport(num_examples=count, num_steps=1, loss=0.0, metrics={}, seconds=0.0)

    def save(self, directory: str) -> None:
        """A checkpoint of one small file."""
        folder = Path(directory) / "policy"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")


class NoSync:
    """The scripted engines keep their responses whatever they are sent."""

    def publish(self, version: int) -> SyncReport:
        """Nothing is sent."""
        nothing = {"num_tensors": 0, "num_bytes": 0, "digest": "", "max_logprob_gap": 0.0, "num_probe_tokens": 0}
        return SyncReport(version=version, seconds=0.0, **nothing)


def one_round(num_prompts: int) -> dict[str, float]:
    """Run a small round and one of `num_prompts`; what the second took."""
    from rlsys.app.cluster import cluster
    from rlsys.app.cores import CoreClock
    from rlsys.rounds import run_rounds

    with tempfile.TemporaryDirectory(prefix="rlsys-scaling-") as scratch, cluster(None) as machine:
        parts, judge = _parts(Path(scratch), num_prompts, cores=machine.cores[:1])
        stages = {"rollout": parts.rollouts, "judge": judge}
        processes = {name: stage.pids()[0] for name, stage in stages.items()}
        clock = CoreClock({"all": lambda: [os.getpid(), *processes.values()]})
        rounds = run_rounds(parts)
        next(rounds)
        clock.lap()
        began = time.monotonic()
        report = next(rounds)
        cpu_seconds = clock.lap()["all"] * (time.monotonic() - began)  # a lap is told in cores kept busy
        rounds.close()
        found = {
            "seconds": report.seconds["round"],
            "cpu_seconds": cpu_seconds,
            "driver_mib": peak_mib("self"),
            **{f"{name}_mib": peak_mib(str(pid)) for name, pid in processes.items()},
            "journal_mib": sum(p.stat().st_size for p in (Path(scratch) / JOURNAL).glob("round-0001.*.log"))
            / (1 << 20),
            "prompts": report.num_prompts,
            "rollouts": report.num_responses,
            "pairs": report.num_examples,
            "failed": report.failed["rollouts"] + report.failed["workers"],
        }
        for stage in stages.values():
            stage.close()
    return found


def _parts(root: Path, num_prompts: int, *, cores: tuple[int, ...]) -> tuple[Any, Any]:
    """The parts of a run of two rounds, whose actors share `cores`, and the engine that judges."""
    from actors.engines import discover, engine
    from actors.feedback import FeedbackStage
    from actors.roles import EngineRole
    from actors.stages import RolloutStage
    from rlsys import registry
    from rlsys.checkpoints.run import Checkpoints
    from rlsys.examples.all_pairs import AllPairs
    from rlsys.feedback.critique import CritiqueFeedback
    from rlsys.journal import Journal
    from rlsys.placement import Placement
    from rlsys.prompts.scenes import ScenesPrompts
    from rlsys.replay.none import NoReplay
    from rlsys.run.components import RunComponents
    from rlsys.schedules.gate import GateConfig, MetricGate
    from rlsys.schedules.phases import Phase, Schedule

    registry.discover()
    discover()
    rules = {"rounds": 1, "num_candidates": RESPONSES, "max_tokens": MAX_TOKENS}
    scripted = {"engine": engine.make("scripted"), "placements": [Placement(num_cpus=0.5, cores=cores)]}
    judge = EngineRole("judge", model="scripted", raw_logits=True, **scripted)
    feedback = CritiqueFeedback(max_tokens=MAX_TOKENS)
    parts = RunComponents(
        schedule=Schedule([Phase(num_prompts=count, **rules) for count in (WARM_UP, num_prompts)]),
        prompts=ScenesPrompts(),
        fingerprint="scripted",
        rollouts=RolloutStage(current=lambda: ("scripted", 0), seed=0, **scripted),
        feedback=FeedbackStage(feedback=feedback, roles={"judge": judge}, own=[judge]),
        builder=AllPairs(max_per_prompt=6),
        replay=NoReplay(),
        learner=CountingLearner(),
        weights=NoSync(),
        evaluate=lambda round, *, ends=False: {},
        gate=MetricGate(config=GateConfig()),
        journal=Journal(root / JOURNAL),
        checkpoints=Checkpoints(root / "checkpoints", initial_policy=root),
        tracker=Silent(),
    )
    return parts, judge


def peak_mib(process: str) -> float:
    """Largest resident memory of a process so far."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(num_prompts: int) -> dict[str, float]:
    """`one_round` in a process of its own.

    Raises:
        ValueError: the round did not answer every prompt.
    """
    command = [sys.executable, "-m", "benchmarks.scaling", str(num_prompts)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    if (found["prompts"], found["rollouts"], found["failed"]) != (num_prompts, num_prompts * RESPONSES, 0):
        raise ValueError(f"a round of {num_prompts} prompts was not whole: {found}")
    return found


def one_turn(number: int) -> dict[int, dict[str, float]]:
    """Mean of the rounds of each size, by number of prompts."""
    found: dict[int, list[dict[str, float]]] = {count: [] for count in PROMPTS}
    for count in ORDER if number % 2 == 0 else ORDER[::-1]:
        found[count].append(measure(count))
    return {
        count: {name: statistics.mean(each[name] for each in rounds) for name in rounds[0]}
        for count, rounds in found.items()
    }


def _row(turns: Sequence[dict[int, dict[str, float]]], measure: str, count: int, base: int) -> Row:
    key, unit, per_prompt = MEASURES[measure]

    def values(count: int) -> list[float]:
        scale = (1e3 if unit == "ms" else 1.0) / (count if per_prompt else 1)
        return [turn[count][key] * scale for turn in turns]

    ours, other = values(count), values(base)
    return Row(
        case=f"{measure}, {count}",
        ours=Spread.of(ours),
        other=Spread.of(other),
        other_name=f"{base} prompts",
        ratio=Spread.of([a / b for a, b in zip(ours, other, strict=True)]),
        unit=unit,
        target=TARGET if count == LARGE and not measure.startswith("CPU time") else None,
    )


def cases(options: Options) -> list[str]:
    """Names of all cases."""
    return [f"{measure}, {LARGE}" for measure in MEASURES]


def rows(options: Options) -> Iterator[Row]:
    """Measure; a turn gives the figures of all cases."""
    turns = [one_turn(number) for number in range(options.repeats)]
    pairs = ", ".join(f"{turns[0][count]['pairs']:.0f} pairs of {count} prompts" for count in PROMPTS)
    checked = f"every prompt answered {RESPONSES} times and judged, nothing failed; {pairs}"
    for measure in MEASURES:
        yield replace(_row(turns, measure, LARGE, MIDDLE), checked=checked)
    yield _row(turns, "time per prompt", MIDDLE, SMALL)


if __name__ == "__main__":
    end_with_parent()
    print(json.dumps(one_round(int(sys.argv[1]))))
