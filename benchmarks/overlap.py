"""A round against its slowest stage alone: what the overlap of the stages leaves uncovered, at staleness 0.

Real rounds of preset `scenes` (`rlsys.rounds.run_rounds`, journal, checkpoint, proof of the weights; no evaluation): the
engines that answer and judge on one half of the cores, the learner on the other. The other side is the same work one
stage after the other, with nothing else running: all responses and critiques, then all steps on their pairs; the longer
one of the two counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from benchmarks.harness import Options, Row, Target, in_turn
from benchmarks.runs import MOST_ROUNDS, preset, scenes_models, started
from rlsys import registry
from rlsys.common.streams import Stream
from rlsys.records import RoundReport
from rlsys.rounds import run_rounds
from rlsys.run.components import RunComponents
from rlsys.run.pipeline import AHEAD

TARGET = Target(at_most=1.15)
MOST_OTHER_PAIRS = 0.1
"""By how much the numbers of pairs may differ, as a share: the two ways take other prompts, of the same kind."""
CASE = "preset scenes, 256 prompts x 8"


@dataclass
class Rounds:
    """Both ways through rounds of the same kind, each through its own: the judge's engine keeps images that it has seen."""

    parts: RunComponents
    version: int = 0
    overlapped_round: int = 0
    alone_round: int = MOST_ROUNDS // 2
    reports: list[RoundReport] = field(default_factory=list)
    generation_s: list[float] = field(default_factory=list)
    training_s: list[float] = field(default_factory=list)
    num_examples: list[int] = field(default_factory=list)

    def check(self) -> str:
        """Both ways have done the same work: no round trained on older responses, and the numbers of pairs are alike. The
        first round of each warmed up.

        Raises:
            ValueError: they have not.
        """
        if any(report.staleness for report in self.reports):
            raise ValueError("rounds trained on responses of older versions: their staleness is not 0")
        num_examples = statistics.median(report.num_examples for report in self.reports[1:])
        num_alone = statistics.median(self.num_examples[1:])
        told = f"{num_examples:.0f} pairs a round, {num_alone:.0f} one stage after the other"
        if abs(num_examples - num_alone) > MOST_OTHER_PAIRS * num_alone:
            raise ValueError(told)
        return f"staleness 0 in every round; {told}"

    def overlapped(self) -> float:
        """Seconds of a whole round."""
        # The schedule ends with this round, so that nothing is answered ahead for the next.
        parts = replace(self.parts, schedule=self.parts.schedule.cut(self.overlapped_round + 1))
        (report,) = run_rounds(parts, first=self.overlapped_round, version=self.version)
        self.overlapped_round += 1
        self.version = report.policy_version
        self.reports.append(report)
        return report.seconds["round"]

    def alone(self) -> float:
        """Seconds of the slowest stage of a round whose stages wait for each other."""
        parts, plan = self.parts, self.parts.schedule.plan(self.alone_round)
        prompts = parts.prompts.take(parts.schedule.first_prompt(plan.round), plan.num_prompts)
        build = registry.examples.configured(parts.builder, plan.options.get("examples", {}))
        begun = time.perf_counter()
        groups = Stream(parts.rollouts.stream(prompts, plan), ahead=AHEAD)
        scored = list(parts.feedback.stream(groups, plan.options.get("feedback", {})))
        generated = time.perf_counter()
        pairs = [pair for group in scored for pair in build(group)]
        before = time.perf_counter()
        parts.learner.fit(iter(pairs), plan, version=self.version)
        trained = time.perf_counter()
        self.version += 1
        parts.weights.publish(self.version)
        self.alone_round += 1
        self.generation_s.append(generated - begun)
        self.training_s.append(trained - before)
        self.num_examples.append(len(pairs))
        return max(self.generation_s[-1], self.training_s[-1])


def cases(options: Options) -> list[str]:
    """Names of all cases."""
    return [CASE]


def rows(options: Options) -> Iterator[Row]:
    """Measure."""
    registry.discover()
    with started(preset(()), *scenes_models()) as parts:
        rounds = Rounds(parts)
        parts.weights.publish(1)  # connects, and proves that engine and learner begin with the same weights
        rounds.version = 1
        figures = in_turn(rounds.overlapped, rounds.alone, repeats=options.repeats)
    reports, (generation, training) = rounds.reports[1:], (rounds.generation_s[1:], rounds.training_s[1:])
    stages = ("learn", "sync", "checkpoint")
    yield Row.versus(
        figures,
        case=CASE,
        other_name="slowest stage",
        unit="s",
        target=TARGET,
        checked=rounds.check(),
        extra={
            "generation_alone_s": statistics.median(generation),
            "training_alone_s": statistics.median(training),
            "sum_s": statistics.median(generation) + statistics.median(training),
            **{f"{name}_s": statistics.median(report.seconds[name] for report in reports) for name in stages},
        },
    )
