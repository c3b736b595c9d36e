"""A round against its slowest stage alone: what the overlap of the stages leaves uncovered, at staleness 0.

    python -m benchmarks.overlap

Real rounds of preset `scenes` (`rlsys.rounds.run_rounds`, journal, checkpoint, proof of the weights; no evaluation): the
engines that answer and judge on one half of the cores, the learner on the other. The other side is the same work one
stage after the other, with nothing else running: all answers and critiques, then all steps on their pairs; of the two
the longer one counts. The learning rate is so small that all rounds are alike.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.arguments import parse
from benchmarks.harness import Row, Target, in_turn, write
from benchmarks.models import scenes_models
from benchmarks.silence import Silent
from rlsys import registry
from rlsys.common.streams import Stream
from rlsys.contracts import FeedbackStage
from rlsys.records import RolloutGroup, RoundReport, ScoredGroup
from rlsys.rounds import run_rounds
from rlsys.run.components import RunComponents
from rlsys.run.pipeline import AHEAD

TITLE = "A round at staleness 0 over its slowest stage alone: engines on one half of the cores, learner on the other"
MOST = 1.15
MOST_ROUNDS = 1000
MOST_OTHER_PAIRS = 0.1
"""By how much the numbers of pairs may differ, as a share: the two ways take other prompts, of the same kind."""
CASES: dict[str, list[str]] = {
    "preset scenes, 256 prompts x 8": [],
    "stages of like length, 128 prompts x 8": [
        "schedule.num_prompts=128",
        "learner.path=plain",
        "learner.batch_size=16",
        "critic.batch=16",
    ],
}
"""What differs from the preset. Its learner needs a fraction of the engines' time; where every answer is trained as a
sequence of its own, the two need about as long, which is the hardest case for an overlap. The verdicts of a call come
nearly at once, at its end: with half as many groups a call the last steps wait for fewer of them, and a round takes 14
instead of 16 s, though the critic by itself needs 16% longer.
"""


@dataclass(kw_only=True)
class Watched:
    """A feedback stage that remembers when its last group of a round was judged."""

    stage: FeedbackStage
    ended: float = 0.0

    def stream(self, groups: Iterable[RolloutGroup]) -> Iterator[ScoredGroup]:
        """As the stage's."""
        yield from self.stage.stream(groups)
        self.ended = time.perf_counter()

    def count(self, round: int) -> dict[str, float]:
        """As the stage's."""
        return self.stage.count(round)


@dataclass
class Rounds:
    """Both ways through rounds of the same kind, each through its own: the critic's engine keeps pictures that it has seen."""

    parts: RunComponents
    version: int = 0
    overlapped_round: int = 0
    alone_round: int = MOST_ROUNDS // 2
    reports: list[RoundReport] = field(default_factory=list)
    beside_s: list[float] = field(default_factory=list)
    """Generation and critique of a whole round, whose learner works meanwhile."""
    generation_s: list[float] = field(default_factory=list)
    training_s: list[float] = field(default_factory=list)
    num_pairs: list[int] = field(default_factory=list)

    def check(self, *, uncounted: int = 1) -> str:
        """Both ways have done the same work: no round trained on older answers, and the numbers of pairs are alike.

        Args:
            uncounted: overlapped rounds that warmed up; of the others one did.

        Raises:
            ValueError: they have not.
        """
        stale = {report.staleness for report in self.reports}
        if stale != {0}:
            raise ValueError(f"rounds trained on answers of older versions: staleness {stale}")
        num_pairs = statistics.median(report.num_pairs for report in self.reports[uncounted:])
        num_alone = statistics.median(self.num_pairs[1:])
        if abs(num_pairs - num_alone) > MOST_OTHER_PAIRS * num_alone:
            raise ValueError(f"{num_pairs:.0f} pairs a round, {num_alone:.0f} one stage after the other")
        return f"staleness 0 in every round; {num_pairs:.0f} pairs a round, {num_alone:.0f} one stage after the other"

    def overlapped(self) -> float:
        """Seconds of a whole round."""
        watched = Watched(stage=self.parts.feedback)
        # The schedule ends with this round: nothing is answered ahead for the next.
        schedule = self.parts.schedule.cut(self.overlapped_round + 1)
        parts = replace(self.parts, feedback=watched, schedule=schedule)
        started = time.perf_counter()
        (report,) = run_rounds(parts, first=self.overlapped_round, version=self.version)
        self.beside_s.append(watched.ended - started)
        self.overlapped_round += 1
        self.version = report.policy_version
        self.reports.append(report)
        return report.seconds["round"]

    def alone(self) -> float:
        """Seconds of the slowest stage of a round whose stages wait for each other."""
        parts, plan = self.parts, self.parts.schedule.plan(self.alone_round)
        prompts = parts.prompts.take(parts.schedule.first_prompt(plan.round), plan.num_prompts)
        build = registry.examples.configured(parts.builder, plan.options.get("examples", {}))
        started = time.perf_counter()
        groups = Stream(parts.rollouts.stream(prompts, plan), ahead=AHEAD)
        scored = list(parts.feedback.stream(groups))
        generated = time.perf_counter()
        pairs = [pair for group in scored for pair in build(group)]
        before = time.perf_counter()
        parts.learner.fit(iter(pairs), plan, version=self.version)
        trained = time.perf_counter()
        self.version += 1
        parts.weights.publish(self.version)
        self.alone_round += 1
        self.generation_s.append(generated - started)
        self.training_s.append(trained - before)
        self.num_pairs.append(len(pairs))
        return max(generated - started, trained - before)


@contextmanager
def rounds_of(words: list[str], policy: Path, critic: Path) -> Iterator[Rounds]:
    """The parts of a run of preset `scenes`, started."""
    from rlsys.app import config as configuration
    from rlsys.app.assembly import assembled
    from rlsys.app.cluster import cluster
    from rlsys.app.starting import Context
    from rlsys.report.progress import Progress
    from rlsys.schedules.gate import GateConfig, MetricGate

    own = [f"schedule.rounds={MOST_ROUNDS}", "schedule.lr=1e-7", "eval.every=0", "output.keep_checkpoints=2"]
    config, _ = configuration.load(["preset=scenes", *own, *words])
    with (
        tempfile.TemporaryDirectory(prefix="rlsys-overlap-") as scratch,
        cluster(None) as machine,
        Progress() as progress,
        assembled(
            config,
            Context(machine=machine, progress=progress),
            Path(scratch),
            schedule=config.schedule.build(),
            policy=policy,
            critic=critic,
            gate=MetricGate(config=GateConfig()),
        ) as (parts, _),
    ):
        yield Rounds(replace(parts, tracker=Silent()))


def measure(case: str, models: tuple[Path, Path], repeats: int) -> Row:
    """The row of one case."""
    with rounds_of(CASES[case], *models) as rounds:
        rounds.parts.weights.publish(1)  # connects, and proves that engine and learner begin with the same weights
        rounds.version = 1
        ours, other, ratio = in_turn(rounds.overlapped, rounds.alone, repeats=repeats)
    checked, reports = rounds.check(), rounds.reports[1:]

    def middle(values: Any) -> float:
        return statistics.median(values)

    stages = {
        f"{name}_s": middle(report.seconds[name] for report in reports) for name in ("learn", "sync", "checkpoint")
    }
    uncovered, between = ours.median - other.median, stages["sync_s"] + stages["checkpoint_s"]
    generation, training = middle(rounds.generation_s[1:]), middle(rounds.training_s[1:])
    beside = middle(rounds.beside_s[1:])
    settings = f"Beside the preset: {', '.join(CASES[case])}." if CASES[case] else ""
    missed = ratio.median > MOST
    why = _why(uncovered, beside - generation, ours.median - beside, between) if missed else ""
    return Row(
        case=case,
        ours=ours,
        other=other,
        other_name="slowest stage",
        ratio=ratio,
        unit="s",
        target=Target(at_most=MOST),
        checked=checked,
        note=f"{settings} {why}".strip(),
        extra={
            "generation_alone_s": generation,
            "generation_beside_learner_s": beside,
            "training_alone_s": training,
            "sum_s": generation + training,
            **stages,
        },
    )


def _why(uncovered: float, slower: float, after: float, between: float) -> str:
    return (
        f"{uncovered:.2g} s are uncovered: generation takes {abs(slower):.2g} s {'longer' if slower > 0 else 'less'} beside "
        f"the learner and the driver's threads, which have no core of their own; {after:.2g} s go by after the last verdict, "
        f"{between:.2g} s of them in publish and checkpoint, the others with the last steps"
    )


def main() -> None:
    options = parse(__doc__.splitlines()[0], cases=CASES)
    registry.discover()
    models = scenes_models()
    rows = [measure(case, models, options.repeats) for case in options.cases]
    write("overlap", TITLE, rows, repeats=options.written)


if __name__ == "__main__":
    main()
