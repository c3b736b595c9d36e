"""A round's bookkeeping: every record that passes is journalled and counted, and at the end the counts are the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

from rlsys.contracts import ExampleBuilder
from rlsys.prompts.fingerprint import Fingerprint
from rlsys.records import (
    FitReport,
    Replayed,
    RolloutGroup,
    RoundPlan,
    RoundReport,
    ScoredGroup,
    SyncReport,
)
from rlsys.run.components import RunComponents

NOT_MEASURED = float("nan")
"""What a round without pairs says of its loss, and one without answers to measure it on of its KL."""


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
        self._asked = f"groups {_asked(plan)}, from prompt {self._start} on, of {components.fingerprint}, to prompts "
        self._earlier = components.journal.attempts(plan.round)  # before this one begins
        components.journal.begin(plan.round)
        self.num_groups = self.num_rollouts = self.num_pairs = 0
        self.failed_rollouts = self.failed_critiques = 0
        self.oldest_version: int | None = None
        self.replayed: Counter[str] = Counter()
        """Examples of each source that were trained on."""

    def groups(self) -> Iterator[RolloutGroup]:
        """The round's rollout groups, in prompt order; from the journal if an earlier attempt had finished them."""
        components, plan = self._components, self._plan
        whole, asked = self._whole(), Fingerprint()
        if whole is not None:
            source: Iterable[RolloutGroup] = components.journal.read(plan.round, RolloutGroup, attempt=whole)
        else:
            prompts = components.prompts.take(self._start, plan.num_prompts)
            source = components.rollouts.stream(prompts, plan)
        for group in components.tracker.track("rollout", source, plan.num_prompts):
            components.journal.append(plan.round, group)
            asked.add(group.prompt)
            self.num_groups += 1
            self.num_rollouts += sum(rollout.count for rollout in group.responses)
            self.failed_rollouts += group.failed
            versions = [group.policy_version] + ([] if self.oldest_version is None else [self.oldest_version])
            self.oldest_version = min(versions)
            yield group
        self._committed.result()
        components.journal.seal(plan.round, self._asked + asked.hex)

    def _whole(self) -> int | None:
        """The last earlier attempt whose answers are as good as new: a kill cut it short after all of them had come, and they
        were asked for as this plan does, by prompts that ask what the source's ask now. The source may have been edited
        since. Its prompts are read, pictures and all, only if an attempt has everything else in common with this one.
        """
        journal, plan = self._components.journal, self._plan
        seals = {attempt: journal.seals(plan.round, attempt=attempt) for attempt in self._earlier}
        alike = [attempt for attempt, found in seals.items() if any(seal.startswith(self._asked) for seal in found)]
        if not alike:
            return None
        now = self._asked + Fingerprint(self._components.prompts.take(self._start, plan.num_prompts)).hex
        return max((attempt for attempt in alike if now in seals[attempt]), default=None)

    def scored(self, groups: Iterable[RolloutGroup]) -> Iterator[ScoredGroup]:
        """The groups with their verdicts."""
        components, plan = self._components, self._plan
        judged = components.feedback.stream(groups, plan.options.get("feedback", {}))
        for scored in components.tracker.track("critique", judged, plan.num_prompts):
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

    def report(self, fit: FitReport, sync: SyncReport, *, starts: Mapping[int, int]) -> RoundReport:
        """What the round did, evaluated if it is its turn or if the gate ends the run with it.

        Args:
            starts: version that the training of rounds started from, of this one and of as many before it as the lag.
        """
        components, round = self._components, self._plan.round
        report, started = self._unevaluated(fit, sync, starts), time.monotonic()
        evaluation = components.evaluate(round)
        if not evaluation and components.gate.stops(report):
            evaluation = components.evaluate(round, ends=True)
        evaluated_s = time.monotonic() - started
        rollout, feedback = (stage.count(round) for stage in (components.rollouts, components.feedback))
        failed = {
            **report.failed,
            "workers": int(rollout["failed_workers"] + feedback["failed_workers"]),
            "held_out": int(rollout["failed_held_out"]),
        }
        seconds = {
            "rollout": rollout["seconds"],
            "feedback": feedback["seconds"],
            "learn": fit.seconds,
            "sync": sync.seconds,
            "evaluate": evaluated_s,
        }
        return replace(report, eval=evaluation, failed=failed, seconds=seconds)

    def _unevaluated(self, fit: FitReport, sync: SyncReport, starts: Mapping[int, int]) -> RoundReport:
        return RoundReport(
            round=self._plan.round,
            policy_version=sync.version,
            num_prompts=self.num_groups,
            num_rollouts=self.num_rollouts,
            num_pairs=self.num_pairs,
            failed={"rollouts": self.failed_rollouts, "critiques": self.failed_critiques},
            staleness=0 if self.oldest_version is None else _staleness(self._plan.round, self.oldest_version, starts),
            loss=fit.loss if fit.num_steps else NOT_MEASURED,
            kl=fit.metrics.get("kl", NOT_MEASURED),
            metrics=fit.metrics,
            sync=sync,
            replayed=dict(self.replayed),
            eval={},
            seconds={},
        )


def _staleness(round: int, sampled: int, starts: Mapping[int, int]) -> int:
    """Rounds from the one that started with the version `sampled` to `round`. Versions cannot say it: a refusal uses two."""
    return round - max((early for early, version in starts.items() if version <= sampled), default=min(starts))


def _asked(plan: RoundPlan) -> str:
    """What of a plan decides its answers, as text."""
    temperatures = ", ".join(f"{value:g}" for value in plan.temperatures)
    return (
        f"{plan.num_prompts} x {plan.num_candidates} at {temperatures}, top_p {plan.top_p:g}, {plan.max_tokens} tokens, "
        f"at most {plan.lag} rounds ahead"
    )
