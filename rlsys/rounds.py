"""THE loop. It has never heard of Ray, vLLM or DeepSpeed.

A round's stages run at once: while the learner trains on the first pairs, later prompts are still being answered and judged.
The engines change version only in `publish`, after the round's last step, so every pair of a round comes from one version
and the overlap costs no staleness. `plan.lag` lets generation run that many rounds ahead on top; nothing else changes.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain

from rlsys import registry
from rlsys.book import RoundBook
from rlsys.contracts import FeedbackStage, Gate, Learner, PromptSource, RolloutStage, Tracker, Weights
from rlsys.journal import Journal
from rlsys.records import Interval, PreferencePair, RolloutGroup, RoundPlan, RoundReport
from rlsys.savepoints import Savepoints
from rlsys.schedules.phases import Schedule
from rlsys.streams import Stream

AHEAD = 64
"""Groups that may wait between two stages while their round is being trained."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything a run is made of."""

    schedule: Schedule
    prompts: PromptSource
    rollouts: RolloutStage
    feedback: FeedbackStage
    learner: Learner
    weights: Weights
    evaluate: Callable[[int], dict[str, Interval]]
    """Held-out metrics of the engines' current weights, for a round number; empty if that round is not evaluated."""
    gate: Gate
    journal: Journal
    savepoints: Savepoints
    tracker: Tracker


def run_rounds(parts: Parts, *, first: int = 0, version: int = 0) -> Iterator[RoundReport]:
    """Run the schedule from round `first`, whose policy is `version`; one report per round, after its checkpoint is on disk.

    Invariant: a round's answers come from one version, the one the engines held when its generation began; with `lag` 0 that
    is the version the round trains, and never more than `lag` publishes lie between the two.
    """
    schedule, ahead, asked = parts.schedule, deque(), first
    with ThreadPoolExecutor(1, "sampling") as sampling, ThreadPoolExecutor(1, "judging") as judging:
        try:
            for round in range(first, schedule.num_rounds):
                while asked < schedule.num_rounds and asked - round <= schedule.plan(asked).lag:
                    ahead.append(launch(parts, schedule.plan(asked), sampling, judging))
                    asked += 1
                plan, started, launched = schedule.plan(round), time.monotonic(), ahead[0]
                pairs = chain(launched.pairs, earlier_pairs(parts.journal, plan))
                fit = parts.learner.fit(pairs, plan, version=version)
                ahead.popleft()
                for later in ahead:
                    later.groups.wait()  # the engines change version only between two rounds' answers
                # On disk first: an engine that is replaced from here on must come back with the weights of the others.
                parts.savepoints.stage(parts.learner, version + 1)
                sync = parts.weights.publish(version + 1)
                report = launched.book.report(fit, sync, trained_version=version, evaluate=parts.evaluate)
                version += 1
                if not parts.gate.accepts(report):
                    version += 1
                    parts.savepoints.go_back(parts.learner, version)
                    report = replace(
                        report, accepted=False, policy_version=version, sync=parts.weights.publish(version)
                    )
                cursor = schedule.first_prompt(round + 1)
                report = parts.savepoints.commit(report, gate=parts.gate, cursor=cursor, started=started)
                parts.journal.append(round, report)
                parts.journal.finish(round)
                yield report
                if parts.gate.stops(report):
                    return
        finally:
            for launched in ahead:  # also the round in hand, if its training failed: its stages must not wait for ever
                launched.close()


@dataclass(frozen=True, kw_only=True)
class Launched:
    """A round whose generation has begun."""

    book: RoundBook
    groups: Stream[RolloutGroup]
    scored: Stream
    pairs: Iterator

    def close(self) -> None:
        self.groups.close()
        self.scored.close()


def launch(parts: Parts, plan: RoundPlan, sampling: ThreadPoolExecutor, judging: ThreadPoolExecutor) -> Launched:
    """Start answering and judging a round's prompts, after those of rounds that were launched before.

    What waits between the stages is bounded: by `AHEAD` groups where the learner consumes meanwhile, by the round's own size
    where it runs ahead (nobody consumes it before its turn).
    """
    book = RoundBook(plan, parts)
    bound = AHEAD if plan.lag == 0 else plan.num_prompts
    groups = Stream(book.groups(), ahead=bound, executor=sampling)
    scored = Stream(book.scored(groups), ahead=bound, executor=judging)
    return Launched(book=book, groups=groups, scored=scored, pairs=book.pairs(scored, registry.pairs.make(plan.pairs)))


def earlier_pairs(journal: Journal, plan: RoundPlan) -> Iterator[PreferencePair]:
    """The pairs of all rounds before, if the round's data rule wants them."""
    if plan.data == "accumulated":
        for round in range(plan.round):
            yield from journal.read(round, PreferencePair)
