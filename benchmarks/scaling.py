"""Does a round of ten times the prompts take ten times as long, and the driver no more memory?

    python -m benchmarks.scaling

The real loop (`rlsys.rounds.run_rounds`), the real rollout and feedback stages in Ray actors, the real journal and
checkpoints; the scripted engine instead of vLLM, so that what is measured is everything around a model, and a learner
that only counts the pairs it takes: a real one needs minutes for the pairs of 10 000 prompts. Every round runs in a
process of its own, after a small one that is not counted. The largest, which takes a minute, stands between two of the
next size, so that a drift of the machine's speed cancels out of their ratio.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.arguments import parse
from benchmarks.harness import Row, Spread, Target, write
from benchmarks.silence import Silent
from rlsys.records import FitReport, PreferencePair, RoundPlan, SyncReport

TITLE = "Rounds of 100, 1 000 and 10 000 prompts: the loop and its actors around scripted engines"
PROMPTS = (100, 1000, 10_000)
ORDER = (100, 1000, 10_000, 1000)
"""Of the rounds of a turn; every other turn goes the other way."""
WARM_UP = 50
CANDIDATES = 4
MAX_TOKENS = 16
JOURNAL = "journal"
ATTEMPT_BYTES = "round-0001.*.log"


class CountingLearner:
    """Takes pairs and counts them."""

    def fit(self, pairs: Iterable[PreferencePair], plan: RoundPlan, *, version: int) -> FitReport:
        """Nothing is learned."""
        count = sum(1 for _ in pairs)
        return FitReport(num_pairs=count, num_steps=1, loss=0.0, metrics={}, seconds=0.0)

    def save(self, directory: str) -> None:
        """A checkpoint of one small file."""
        folder = Path(directory) / "policy"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")


class NoSync:
    """The scripted engines keep their answers whatever they are sent."""

    def publish(self, version: int) -> SyncReport:
        """Nothing is sent."""
        return SyncReport(
            version=version, num_tensors=0, num_bytes=0, digest="", seconds=0.0, max_logprob_gap=0.0, num_probe_tokens=0
        )


def one_round(num_prompts: int) -> dict[str, float]:
    """Run a small round and one of `num_prompts`; what the second took."""
    from rlsys.app.cluster import cluster
    from rlsys.app.cores import CoreClock
    from rlsys.rounds import run_rounds

    with tempfile.TemporaryDirectory(prefix="rlsys-scaling-") as scratch, cluster(None) as machine:
        parts = _parts(Path(scratch), num_prompts, cores=machine.cores[:1])
        stages = {"rollout": parts.rollouts, "critic": parts.feedback}
        processes = {name: stage.pids()[0] for name, stage in stages.items()}
        clock = CoreClock({"all": lambda: [os.getpid(), *processes.values()]})
        rounds = run_rounds(parts)
        next(rounds)
        clock.lap()
        began = time.monotonic()
        report = next(rounds)
        cpu_seconds = clock.lap()["all"] * (time.monotonic() - began)  # a lap is told in cores kept busy
        rounds.close()
        journal = (Path(scratch) / JOURNAL).glob(ATTEMPT_BYTES)
        found = {
            "seconds": report.seconds["round"],
            "cpu_seconds": cpu_seconds,
            "driver_mib": peak_mib("self"),
            **{f"{name}_mib": peak_mib(str(pid)) for name, pid in processes.items()},
            "journal_mib": sum(path.stat().st_size for path in journal) / (1 << 20),
            "prompts": report.num_prompts,
            "rollouts": report.num_rollouts,
            "pairs": report.num_pairs,
            "failed": report.failed["rollouts"] + report.failed["workers"],
            "unread_critiques": report.failed["critiques"],
        }
        for stage in stages.values():
            stage.close()
    return found


def _parts(root: Path, num_prompts: int, *, cores: tuple[int, ...]) -> Any:
    """Of a run of two rounds, whose actors share `cores`."""
    from actors.engines import discover, engine
    from actors.stages import FeedbackStage, RolloutStage
    from rlsys import registry
    from rlsys.checkpoints.run import Checkpoints
    from rlsys.examples.all_pairs import AllPairs
    from rlsys.feedback.critique import CritiqueFeedback
    from rlsys.journal import Journal
    from rlsys.placement import Placement
    from rlsys.prompts.scenes import ScenesPrompts
    from rlsys.run.components import RunComponents
    from rlsys.schedules.gate import GateConfig, MetricGate
    from rlsys.schedules.phases import Phase, Schedule

    registry.discover()
    discover()
    rules = {"rounds": 1, "num_candidates": CANDIDATES, "max_tokens": MAX_TOKENS}
    scripted = {"engine": engine.make("scripted"), "placements": [Placement(num_cpus=0.5, cores=cores)]}
    feedback = CritiqueFeedback(max_tokens=MAX_TOKENS)
    return RunComponents(
        schedule=Schedule([Phase(num_prompts=count, **rules) for count in (WARM_UP, num_prompts)]),
        prompts=ScenesPrompts(),
        fingerprint="scripted",
        rollouts=RolloutStage(current=lambda: ("scripted", 0), seed=0, **scripted),
        feedback=FeedbackStage(feedback=feedback, model="scripted", **scripted),
        builder=AllPairs(max_per_prompt=6),
        learner=CountingLearner(),
        weights=NoSync(),
        evaluate=lambda round, *, ends=False: {},
        gate=MetricGate(config=GateConfig()),
        journal=Journal(root / JOURNAL),
        checkpoints=Checkpoints(root / "checkpoints", initial_policy=root),
        tracker=Silent(),
    )


def peak_mib(process: str) -> float:
    """Largest resident memory of a process so far."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def measure(num_prompts: int) -> dict[str, float]:
    """`one_round` in a process of its own.

    Raises:
        ValueError: the round did not answer every prompt.
    """
    words = [sys.executable, "-m", "benchmarks.scaling", "--round", str(num_prompts)]
    output = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found = json.loads(output.splitlines()[-1])
    if (found["prompts"], found["rollouts"], found["failed"]) != (num_prompts, num_prompts * CANDIDATES, 0):
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


def rows_of(turns: Sequence[dict[int, dict[str, float]]]) -> list[Row]:
    """The table of several turns, each with every number of prompts."""
    small, middle, large = PROMPTS

    def ratio(case: str, key: str, unit: str, *, per_prompt: bool, most: float | None, of: int = large) -> Row:
        def value(turn: dict[int, dict[str, float]], count: int) -> float:
            return turn[count][key] / (count if per_prompt else 1) * (1e3 if unit == "ms" else 1)

        base = middle if of == large else small
        return Row(
            case=case,
            ours=Spread.of([value(turn, of) for turn in turns]),
            other=Spread.of([value(turn, base) for turn in turns]),
            other_name=f"{base} prompts",
            ratio=Spread.of([value(turn, of) / value(turn, base) for turn in turns]),
            unit=unit,
            target=None if most is None else Target(at_most=most),
            extra={
                f"{name}_at_{count}": statistics.median(turn[count][name] for turn in turns)
                for count in (base, of)
                for name in (("seconds", "pairs") if key == "seconds" else ())
            },
        )

    one = turns[0]
    rows = [
        ratio("time per prompt, 10 000", "seconds", "ms", per_prompt=True, most=1.1),
        ratio("time per prompt, 1 000", "seconds", "ms", per_prompt=True, most=None, of=middle),
        ratio("CPU time of driver and actors per prompt, 10 000", "cpu_seconds", "ms", per_prompt=True, most=None),
        ratio(
            "CPU time of driver and actors per prompt, 1 000",
            "cpu_seconds",
            "ms",
            per_prompt=True,
            most=None,
            of=middle,
        ),
        ratio("driver's peak memory, 10 000", "driver_mib", "MiB", per_prompt=False, most=1.1),
        ratio("rollout actor's peak memory, 10 000", "rollout_mib", "MiB", per_prompt=False, most=1.1),
        ratio("critic actor's peak memory, 10 000", "critic_mib", "MiB", per_prompt=False, most=1.1),
        ratio("journal per prompt, 10 000", "journal_mib", "MiB", per_prompt=True, most=1.1),
    ]
    checked = ", ".join(f"{one[count]['pairs']:.0f} pairs of {count} prompts" for count in PROMPTS)
    rows[0] = replace(
        rows[0],
        checked=f"every prompt answered {CANDIDATES} times and judged, nothing failed; {checked}",
        note="scripted engines, and a learner that only counts its pairs",
    )
    return rows


def main(words: Sequence[str]) -> None:
    if words and words[0] == "--round":
        print(json.dumps(one_round(int(words[1]))))
        return
    options = parse(__doc__.splitlines()[0], words)
    turns = [one_turn(number) for number in range(options.repeats)]
    write("scaling", TITLE, rows_of(turns), repeats=options.written)


if __name__ == "__main__":
    main(sys.argv[1:])
