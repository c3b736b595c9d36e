"""The recorder of a round: it journals and counts every record that passes through it, and makes the round's report."""

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
"""The loss of a round without examples, and the KL of a round without responses to measure it on."""


class RoundRecorder:
    """Passes the records of one round from stage to stage. It journals every record before it passes it on, and counts it."""

    def __init__(self, plan: RoundPlan, components: RunComponents, *, committed: Future[None]) -> None:
        """
        Args:
            committed: future that is done when the round that trained the sampling weights is on disk. The responses are not
                sealed before.
        """
        self._plan = plan
        self._components = components
        self._committed = committed
        self._start = components.schedule.first_prompt(plan.round)
        self._groups_seal = (
            f"groups {_sampling_of(plan)}, from prompt {self._start} on, of {components.fingerprint}, to prompts "
        )
        """Name of the seal of complete groups, without the fingerprint of the prompts."""
        self._earlier = components.journal.attempts(plan.round)  # read before this attempt begins
        components.journal.begin(plan.round)
        self.num_groups = self.num_responses = self.num_examples = 0
        self.failed_rollouts = self.failed_critiques = 0
        self.oldest_version: int | None = None
        self.replayed: Counter[str] = Counter()
        """Number of replayed examples that the round has trained on, by source."""

    def groups(self) -> Iterator[RolloutGroup]:
        """The round's rollout groups, in prompt order. They are read from the journal if an earlier attempt completed them."""
        components, plan = self._components, self._plan
        reusable, fingerprint = self._reusable_attempt(), Fingerprint()
        if reusable is not None:
            source: Iterable[RolloutGroup] = components.journal.read(plan.round, RolloutGroup, attempt=reusable)
        else:
            prompts = components.prompts.take(self._start, plan.num_prompts)
            source = components.rollouts.stream(prompts, plan)
        for group in components.tracker.track("rollout", source, plan.num_prompts):
            components.journal.append(plan.round, group)
            fingerprint.add(group.prompt)
            self.num_groups += 1
            self.num_responses += sum(rollout.count for rollout in group.responses)
            self.failed_rollouts += group.failed
            versions = [group.policy_version] + ([] if self.oldest_version is None else [self.oldest_version])
            self.oldest_version = min(versions)
            yield group
        self._committed.result()
        components.journal.seal(plan.round, self._groups_seal + fingerprint.hex)

    def _reusable_attempt(self) -> int | None:
        """The last earlier attempt whose responses can be reused, or `None`.

        Such an attempt was killed after all its responses were complete, and its seal matches this round: the same sampling
        plan, the same run fingerprint and the same prompts. The prompts are compared because the source may have been edited
        since. The source's prompts, including their images, are read only if everything else of an attempt matches.
        """
        journal, plan = self._components.journal, self._plan
        seals = {attempt: journal.seals(plan.round, attempt=attempt) for attempt in self._earlier}
        alike = [
            attempt for attempt, found in seals.items() if any(seal.startswith(self._groups_seal) for seal in found)
        ]
        if not alike:
            return None
        now = self._groups_seal + Fingerprint(self._components.prompts.take(self._start, plan.num_prompts)).hex
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
        """The examples of the round's own groups, in prompt order."""
        components, plan = self._components, self._plan
        for scored in components.tracker.track("train", scored_groups, plan.num_prompts):
            examples = build(scored)
            components.journal.append(plan.round, *examples)
            self.num_examples += len(examples)
            yield from examples

    def trained(self, mixed: Iterable[Any]) -> Iterator[Any]:
        """All examples of a replay's mix, which the learner trains on. Replayed examples are only counted, so that the journal
        does not store them twice.
        """
        for example in mixed:
            if isinstance(example, Replayed):
                self.replayed[example.source] += 1
                example = example.example
            yield example

    def report(self, fit: FitReport, sync: SyncReport, *, starts: Mapping[int, int]) -> RoundReport:
        """The report of the round. It includes an evaluation if one is due, or if the gate ends the run with this round.

        Args:
            starts: version that training started from, by round, for this round and for as many rounds before it as the lag.
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
            num_responses=self.num_responses,
            num_examples=self.num_examples,
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
    """Number of rounds between `round` and the round whose training started from the version `sampled`. The difference of the
    versions is not this number, because a refused round uses two versions."""
    return round - max((early for early, version in starts.items() if version <= sampled), default=min(starts))


def _sampling_of(plan: RoundPlan) -> str:
    """The parts of a plan that determine the round's responses, as text."""
    temperatures = ", ".join(f"{value:g}" for value in plan.temperatures)
    return (
        f"{plan.num_prompts} x {plan.num_candidates} at {temperatures}, top_p {plan.top_p:g}, {plan.max_tokens} tokens, "
        f"at most {plan.lag} rounds ahead"
    )
