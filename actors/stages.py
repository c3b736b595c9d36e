"""The two stages of a round that run on engines, as the loop knows them.

The result of a stage does not depend on how many workers there are, which of them did what, or whether one was
replaced: what is asked in one engine call depends on the plan, `batch` and the sizes of images only, and a call's result
on nothing but what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from actors.chunks import chunks
from actors.counts import Counts
from actors.feedback_processes import FeedbackProcesses
from actors.judge import JudgeWorker
from actors.ordered import Task
from actors.partial import PartialResult
from actors.pool import WorkerPool
from actors.remote import Spec
from actors.rollout import RolloutTask, RolloutWorker
from rlsys import wire
from rlsys.common import files
from rlsys.common.streams import Stream
from rlsys.contracts import Feedback
from rlsys.errors import ConfigError, EngineError
from rlsys.placement import Placement
from rlsys.records import Generation, Probe, Prompt, RolloutGroup, RoundPlan, Sampling, ScoredGroup, Verdict
from rlsys.seeding import child_seed

PROBE_TOKENS = 32
"""Longest answer of a probe."""
AHEAD_OF_A_PROCESS = 4
"""Groups that may wait, for each process of a feedback that asks no judge."""


class RolloutStage:
    """`rlsys.contracts.RolloutStage`, and what `rlsys.run.sync.WeightSync` needs of the engines."""

    def __init__(
        self,
        *,
        engine: Any,
        current: Callable[[], tuple[str | Path, int]],
        placements: Sequence[Placement],
        seed: int,
        batch: int = 32,
        held_out_batch: int = 256,
        deadline_s: float = 900.0,
        probe_prompts: Sequence[Prompt] = (),
        probe_file: Path | None = None,
    ) -> None:
        """Start the workers, one per placement.

        Args:
            engine: a plug-in of group `engine`.
            current: folder of the weights that a worker started now must hold, and their version.
            seed: root seed of the run.
            batch: prompts per engine call.
            held_out_batch: prompts per engine call of an evaluation, which asks for one answer to each.
            deadline_s: for the first results of a call, and from each to the next.
            probe_prompts: prompts whose answers prove weight updates; with images where the policy takes any.
            probe_file: where these answers are kept, so that a resumed run proves its updates with the same ones.

        Raises:
            ConfigError: batch or placements are empty.
        """
        _check(batch, placements)
        self.receivers_per_worker: int = engine.receivers
        self._current = current
        self._batch, self._held_out_batch = batch, held_out_batch
        self._counts = Counts("rollout")
        self._probe_prompts = list(probe_prompts)
        self._probes: list[Probe] = []
        self._probe_file = probe_file
        self._seed = seed
        self._num_workers = len(placements)
        spec = Spec(
            name="rollout",
            worker=RolloutWorker,
            options={"engine": engine, "seed": seed},
            current=self._weights,
        )
        self._pool = WorkerPool(spec, placements, deadline_s=deadline_s, on_death=self._counts.death)

    def stream(self, prompts: Iterable[Prompt], plan: RoundPlan) -> Iterator[RolloutGroup]:
        """One group per prompt, in prompt order, all from one version of the weights.

        Raises:
            EngineError: two workers hold different versions.
        """
        version: int | None = None
        with self._counts.working_on(None if plan.is_held_out else plan.round):
            for group in self._answered(prompts, plan):
                if version is not None and group.policy_version != version:
                    raise EngineError(
                        f"round {plan.round} has answers of version {version} and, from prompt {group.index} on, of "
                        f"version {group.policy_version}"
                    )
                version = group.policy_version
                if plan.is_held_out:
                    self._counts.missed(group.failed)
                yield group

    def count(self, round: int) -> dict[str, float]:
        """`seconds` (busy, mean over workers), `failed_workers` and `failed_held_out` of a round, with what has failed since
        the last count in no round.
        """
        return self._counts.of(round, self._num_workers)

    def pids(self) -> list[int]:
        """Processes of the workers that run on this machine."""
        return self._pool.pids()

    def members(self) -> tuple[str, ...]:
        """Names of the workers; a replaced one has another name than the one before it."""
        return self._pool.members()

    def versions(self) -> list[int]:
        """Version of the weights that every worker holds."""
        return self._pool.all("version", [()] * self._num_workers)

    def connect(self, offers: Sequence[dict[str, Any]]) -> None:
        """Let every worker join a sender of weights; one offer for each."""
        self._pool.all("connect", [(offer,) for offer in offers])

    def update(self, manifest: dict[str, Any], version: int) -> list[dict[str, Any]]:
        """Let every worker take new weights; one report of each.

        Raises:
            WorkerDied: one died. It has been replaced, by one with the weights that are on disk.
            SyncError, SyncTimeout: an engine did not get all.
        """
        return self._pool.all("update", [(manifest, version)] * self._num_workers)

    def probes(self) -> list[Probe]:
        """The sequences that prove weight updates: answers of the first version asked, then always the same."""
        if not self._probes and self._probe_file and self._probe_file.exists():
            self._probes = wire.decode_many(self._probe_file.read_bytes(), Probe)
        if not self._probes and self._probe_prompts:
            sampling = Sampling(max_tokens=PROBE_TOKENS, seed=child_seed(self._seed, "probes"))
            frame = wire.encode_many(self._probe_prompts)
            answers = self._pool.all("answer", [(frame, sampling)] * self._num_workers)
            self._probes = wire.decode_many(answers[0], Probe)
            if self._probe_file:
                self._probe_file.parent.mkdir(parents=True, exist_ok=True)
                files.replace(self._probe_file, answers[0])
        return self._probes

    def logprobs(self, probes: Sequence[Probe]) -> list[list[np.ndarray]]:
        """For every worker, float32 [T] log-probabilities of every probe's response tokens."""
        return self._pool.all("logprobs", [(wire.encode_many(list(probes)),)] * self._num_workers)

    def close(self) -> None:
        """End the workers."""
        self._pool.close()

    def _weights(self) -> dict[str, Any]:
        model, version = self._current()
        return {"model": str(model), "version": version}

    def _tasks(self, prompts: Iterable[Prompt], plan: RoundPlan) -> Iterator[Task]:
        start = 0
        size = self._held_out_batch if plan.is_held_out else self._batch
        for chunk in chunks(prompts, size, prompt=lambda prompt: prompt):
            yield Task(
                key=enumerate(chunk, start),
                arguments=(wire.encode_many(chunk), RolloutTask.of(plan, start)),
                num_items=len(chunk),
            )
            start += len(chunk)

    def _answered(self, prompts: Iterable[Prompt], plan: RoundPlan) -> Iterator[RolloutGroup]:
        for asked, part in self._pool.run("rollout", self._tasks(prompts, plan)):
            yield from self._groups(asked, part, plan)

    def _groups(
        self, asked: Iterator[tuple[int, Prompt]], part: PartialResult | None, plan: RoundPlan
    ) -> Iterator[RolloutGroup]:
        """
        Args:
            asked: prompts with their places in the round, those not yet answered.
        """
        if part is None:
            for index, prompt in asked:
                yield _without_rollouts(prompt, plan, index, version=self._current()[1])
            return
        self._counts.seconds[plan.round] += part.seconds
        self._counts.tell(part.notes)
        for group in part.records(RolloutGroup):
            _, prompt = next(asked)
            yield replace(group, prompt=prompt)


class FeedbackStage:
    """`rlsys.contracts.FeedbackStage`. Feedback that asks no judge computes in processes of its own on this machine."""

    def __init__(
        self,
        *,
        feedback: Feedback,
        engine: Any = None,
        model: str | None = None,
        placements: Sequence[Placement] = (),
        num_processes: int = 1,
        batch: int = 8,
        deadline_s: float = 900.0,
    ) -> None:
        """Start the workers, one per placement.

        Args:
            engine: a plug-in of group `engine`, for the judge.
            model: the judge's checkpoint.
            num_processes: for feedback that asks no judge.
            batch: groups per engine call.
            deadline_s: for the first results of a call, and from each to the next; without a judge, for a group.

        Raises:
            ConfigError: the feedback asks a judge, and there is no placement for one; or it asks none, and cannot be taken
                to another process.
        """
        self._feedback = feedback
        self._batch = batch
        self._counts = Counts("feedback")
        self._pool: WorkerPool | None = None
        self._processes: FeedbackProcesses | None = None
        self._num_workers = max(1, len(placements) if feedback.needs_engine else num_processes)
        if feedback.needs_engine:
            _check(batch, placements)
            options = {"feedback": feedback, "engine": engine, "model": str(model)}
            spec = Spec(name="critic", worker=JudgeWorker, options=options)
            self._pool = WorkerPool(spec, placements, deadline_s=deadline_s, on_death=self._counts.death)
        else:
            self._processes = FeedbackProcesses(
                feedback, number=self._num_workers, deadline_s=deadline_s, on_death=self._counts.death
            )

    def stream(self, groups: Iterable[RolloutGroup]) -> Iterator[ScoredGroup]:
        """One scored group per group, in order."""
        if self._pool is None:
            yield from self._alone(groups)
            return
        for asked, part in self._pool.run("judge", self._tasks(groups)):
            for group, verdicts in self._verdicts(asked, part):
                yield ScoredGroup(group=group, verdicts=verdicts)

    def count(self, round: int) -> dict[str, float]:
        """`seconds` (busy, mean over workers) and `failed_workers` of a round."""
        return self._counts.of(round, self._num_workers)

    def pids(self) -> list[int]:
        """Processes of the workers that run on this machine."""
        return self._processes.pids() if self._pool is None else self._pool.pids()

    def close(self) -> None:
        """End the workers."""
        for workers in (self._pool, self._processes):
            if workers is not None:
                workers.close()

    def _alone(self, groups: Iterable[RolloutGroup]) -> Iterator[ScoredGroup]:
        # Another thread waits for the groups: a verdict must not wait for the answers that come after its own.
        begun = ((group, self._processes.judge(group)) for group in groups)
        judged = Stream(begun, ahead=AHEAD_OF_A_PROCESS * self._num_workers)
        try:
            for group, future in judged:
                self._counts.round = group.round
                seconds, verdicts = future.result()
                self._counts.seconds[group.round] += seconds
                yield ScoredGroup(group=group, verdicts=verdicts)
        finally:
            judged.close()

    def _tasks(self, groups: Iterable[RolloutGroup]) -> Iterator[Task]:
        for chunk in chunks(groups, self._batch, prompt=lambda group: group.prompt):
            self._counts.round = chunk[0].round
            yield Task(key=iter(chunk), arguments=(wire.encode_many(chunk),), num_items=len(chunk))

    def _verdicts(
        self, asked: Iterator[RolloutGroup], part: PartialResult | None
    ) -> Iterator[tuple[RolloutGroup, tuple[Verdict, ...]]]:
        """
        Args:
            asked: groups that are not judged yet.
        """
        if part is None:
            unanswered = Generation(prompt_token_ids=np.zeros(0, np.int32), completions=())
            for group in asked:
                yield group, self._feedback.verdicts(group, [unanswered] * len(self._feedback.requests(group)))
            return
        self._counts.tell(part.notes)
        verdicts = iter(part.records(Verdict))
        for group in islice(asked, part.num_items):
            self._counts.seconds[group.round] += part.seconds / part.num_items
            yield group, tuple(islice(verdicts, len(group.rollouts)))


def _check(batch: int, placements: Sequence[Placement]) -> None:
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    if not placements:
        raise ConfigError("num_actors must be at least 1, got 0")


def _without_rollouts(prompt: Prompt, plan: RoundPlan, index: int, *, version: int) -> RolloutGroup:
    return RolloutGroup(
        prompt=prompt,
        round=plan.round,
        index=index,
        policy_version=version,
        prompt_token_ids=np.zeros(0, np.int32),
        rollouts=(),
        failed=plan.num_candidates,
    )
