"""A round's bookkeeping: every record that passes is journalled and counted, and at the end the counts are the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from rlsys.contracts import ExampleBuilder
from rlsys.records import (
    FitReport,
    Interval,
    Replayed,
    RolloutGroup,
    RoundPlan,
    RoundReport,
    ScoredGroup,
    SyncReport,
)
from rlsys.run.components import RunComponents

NOT_MEASURED = float("nan")
"""What a round without pairs says of its loss."""


class RoundRecorder:
    """Passes one round's records through, writes them down before it hands them on, and counts them."""

    def __init__(self, plan: RoundPlan, components: RunComponents, *, committed: Future[None]) -> None:
        """
        Args:
            committed: done when the round that made the weights that answer is on disk. Answers are not sealed before.
        """
        self._plan = plan
        self._components = components
        self._committed = committed
        self._start = components.schedule.first_prompt(plan.round)
        # Asked before this attempt begins: answers of an attempt that a kill cut short are as good as new if all are there
        # and were asked for as this plan does.
        self._answered = f"groups {_asked(plan)}, from prompt {self._start} on, of {components.fingerprint}"
        self._whole = [
            attempt
            for attempt in components.journal.attempts(plan.round)
            if components.journal.is_sealed(plan.round, self._answered, attempt=attempt)
        ]
        components.journal.begin(plan.round)
        self.num_groups = self.num_rollouts = self.num_pairs = 0
        self.failed_rollouts = self.failed_critiques = 0
        self.oldest_version: int | None = None
        self.replayed: Counter[str] = Counter()
        """Examples of each source that were trained on."""

    def groups(self) -> Iterator[RolloutGroup]:
        """The round's rollout groups, in prompt order; from the journal if an earlier attempt had finished them."""
        components, plan = self._components, self._plan
        if self._whole:
            source: Iterable[RolloutGroup] = components.journal.read(plan.round, RolloutGroup, attempt=self._whole[-1])
        else:
            prompts = components.prompts.take(self._start, plan.num_prompts)
            source = components.rollouts.stream(prompts, plan)
        for group in components.tracker.track("rollout", source, plan.num_prompts):
            components.journal.append(plan.round, group)
            self.num_groups += 1
            self.num_rollouts += sum(rollout.count for rollout in group.responses)
            self.failed_rollouts += group.failed
            versions = [group.policy_version] + ([] if self.oldest_version is None else [self.oldest_version])
            self.oldest_version = min(versions)
            yield group
        self._committed.result()
        components.journal.seal(plan.round, self._answered)

    def scored(self, groups: Iterable[RolloutGroup]) -> Iterator[ScoredGroup]:
        """The groups with their verdicts."""
        components, plan = self._components, self._plan
        for scored in components.tracker.track("critique", components.feedback.stream(groups), plan.num_prompts):
            components.journal.append(plan.round, scored)
            self.failed_critiques += sum(verdict.failed for verdict in scored.verdicts)
            yield scored

    def examples(self, scored_groups: Iterable[ScoredGroup], build: ExampleBuilder) -> Iterator[Any]:
        """What the objective learns from, in prompt order."""
        components, plan = self._components, self._plan
        for scored in components.tracker.track("train", scored_groups, plan.num_prompts):
            examples = build(scored)
            components.journal.append(plan.round, *examples)
            self.num_pairs += len(examples)
            yield from examples

    def trained(self, mixed: Iterable[Any]) -> Iterator[Any]:
        """What the learner is given of a replay's mix: all examples. Those that are not the round's own are only counted; the
        journal does not keep them twice.
        """
        for example in mixed:
            if isinstance(example, Replayed):
                self.replayed[example.source] += 1
                example = example.example
            yield example

    def report(
        self, fit: FitReport, sync: SyncReport, *, trained_version: int, evaluate: Callable[[int], dict[str, Interval]]
    ) -> RoundReport:
        """What the round did, evaluated. `trained_version` is the policy's version before its steps."""
        started = time.monotonic()
        evaluation = evaluate(self._plan.round)
        evaluated_s = time.monotonic() - started
        rollout, feedback = (
            stage.count(self._plan.round) for stage in (self._components.rollouts, self._components.feedback)
        )
        return RoundReport(
            round=self._plan.round,
            policy_version=sync.version,
            num_prompts=self.num_groups,
            num_rollouts=self.num_rollouts,
            num_pairs=self.num_pairs,
            failed={
                "rollouts": self.failed_rollouts,
                "critiques": self.failed_critiques,
                "workers": int(rollout["failed_workers"] + feedback["failed_workers"]),
                "held_out": int(rollout["failed_held_out"]),
            },
            staleness=trained_version - (trained_version if self.oldest_version is None else self.oldest_version),
            loss=fit.loss if fit.num_steps else NOT_MEASURED,
            implicit_accuracy=fit.metrics.get("implicit_accuracy", NOT_MEASURED),
            kl=fit.metrics.get("kl", NOT_MEASURED),
            metrics=fit.metrics,
            sync=sync,
            replayed=dict(self.replayed),
            eval=evaluation,
            seconds={
                "rollout": rollout["seconds"],
                "feedback": feedback["seconds"],
                "learn": fit.seconds,
                "sync": sync.seconds,
                "evaluate": evaluated_s,
            },
        )


def _asked(plan: RoundPlan) -> str:
    """What of a plan decides its answers, as text."""
    temperatures = ", ".join(f"{value:g}" for value in plan.temperatures)
    return (
        f"{plan.num_prompts} x {plan.num_candidates} at {temperatures}, top_p {plan.top_p:g}, {plan.max_tokens} tokens, "
        f"at most {plan.lag} rounds ahead"
    )
