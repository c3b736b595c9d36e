"""The rollout stage, which samples responses to prompts on engines with the policy's weights.

The result of the stage does not depend on the number of workers, on which worker executed which call, or on whether a worker
was replaced. The prompts of one engine call depend only on the plan, on `batch` and on the sizes of images, and the result of
a call depends only on its prompts and the weights.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from actors.chunks import chunks
from actors.counts import Counts
from actors.ordered import Task
from actors.partial import PartialResult
from actors.pool import WorkerPool
from actors.remote import Spec
from actors.roles import Respondent, RoleEngines
from actors.rollout import RolloutWorker
from rlsys import wire
from rlsys.asking.driver import advance
from rlsys.common import files
from rlsys.contracts import Conversation
from rlsys.conversations.single_turn import SingleTurn
from rlsys.errors import ConfigError, EngineError
from rlsys.placement import Placement
from rlsys.records import Probe, Prompt, Response, RolloutGroup, RoundPlan, Sampling
from rlsys.seeding import child_seed

PROBE_TOKENS = 32
"""Largest number of response tokens of a probe."""


class RolloutStage:
    """The implementation of `rlsys.contracts.RolloutStage`, with the methods that `rlsys.run.sync.WeightSync` uses."""

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
        conversation: Conversation | None = None,
        roles: Mapping[str, RoleEngines] | None = None,
    ) -> None:
        """Start the workers, one per placement.

        Args:
            engine: a plug-in of group `engine`.
            current: function that returns the folder and the version of the weights that a worker must load if it starts now.
            placements: one placement per worker.
            seed: root seed of the run.
            batch: number of prompts per engine call.
            held_out_batch: number of prompts per engine call in an evaluation, which samples one response to each.
            deadline_s: time limit of the first partial result of a call, and between two partial results.
            probe_prompts: prompts of the probes, which prove weight updates; they have images if the policy takes images.
            probe_file: file of the probes, so that a resumed run proves its updates with the same probes.
            conversation: the conversation plug-in; `None` samples one turn.
            roles: engines besides the policy's engines that the conversation asks.

        Raises:
            ConfigError: `batch` is not positive, or `placements` is empty.
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
        self._conversation = None if isinstance(conversation, SingleTurn) else conversation
        self._respondent = Respondent(ChainMap({"policy": self}, {} if roles is None else roles))
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

    def missed(self, number: int) -> None:
        """Count held-out responses that did not come."""
        self._counts.missed(number)

    def ask(self, frame: bytes, num_asks: int) -> Iterator[PartialResult | None]:
        """Ask the policy, with the weights that it holds now (`actors.roles.RoleEngines`)."""
        return self._pool.call("respond", (frame,), num_items=num_asks)

    def count(self, round: int) -> dict[str, float]:
        """`seconds` (busy time, mean over workers), `failed_workers` and `failed_held_out` of a round. They include the
        failures outside of rounds since the previous call.
        """
        return self._counts.of(round, self._num_workers)

    def pids(self) -> list[int]:
        """Ids of the workers' processes that run on this machine."""
        return self._pool.pids()

    def members(self) -> tuple[str, ...]:
        """Names of the workers. A replacement has another name than the worker that it replaces."""
        return self._pool.members()

    def versions(self) -> list[int]:
        """The version of the weights of every worker."""
        return self._pool.all("version", [()] * self._num_workers)

    def connect(self, offers: Sequence[dict[str, Any]]) -> None:
        """Let every worker join a weight sender; there is one offer per worker."""
        self._pool.all("connect", [(offer,) for offer in offers])

    def update(self, manifest: dict[str, Any], version: int) -> list[dict[str, Any]]:
        """Let every worker receive and load new weights, and return one report per worker.

        Raises:
            WorkerDied: a worker died. It has been replaced by a worker with the weights that are on disk.
            SyncError, SyncTimeout: an engine did not receive all weights.
        """
        return self._pool.all("update", [(manifest, version)] * self._num_workers)

    def probes(self) -> list[Probe]:
        """The probes, which prove weight updates. The first call samples their responses with the current weights; later calls
        and resumed runs use the same probes."""
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
        """For every worker and every probe, float32 [T]: the logprobs of the probe's T response tokens."""
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
                arguments=(wire.encode_many(chunk), plan, start),
                num_items=len(chunk),
            )
            start += len(chunk)

    def _answered(self, prompts: Iterable[Prompt], plan: RoundPlan) -> Iterator[RolloutGroup]:
        if self._conversation is not None and not plan.is_held_out:
            yield from self._conversations(prompts, plan)
            return
        for asked, part in self._pool.run("rollout", self._tasks(prompts, plan)):
            yield from self._groups(asked, part, plan)

    def _conversations(self, prompts: Iterable[Prompt], plan: RoundPlan) -> Iterator[RolloutGroup]:
        """Groups whose responses come from a conversation plug-in. The programs of a batch are advanced in common waves."""
        index = 0
        answer = partial(self._respondent, heard=lambda part: self._heard(part, plan))
        for batch in chunks(prompts, self._batch, prompt=lambda prompt: prompt):
            programs = [self._conversation.respond(prompt, plan, self._seed) for prompt in batch]
            left = iter(batch)
            for found in advance(programs, answer):
                for (prompt_ids, responses), prompt in zip(found, left, strict=False):
                    yield group_of(prompt, plan, index, prompt_ids, responses, version=self._current()[1])
                    index += 1

    def _heard(self, part: PartialResult, plan: RoundPlan) -> None:
        self._counts.seconds[plan.round] += part.seconds
        self._counts.tell(part.notes)

    def _groups(
        self, asked: Iterator[tuple[int, Prompt]], part: PartialResult | None, plan: RoundPlan
    ) -> Iterator[RolloutGroup]:
        """The groups of a partial result.

        Args:
            asked: the prompts of the task that have no group yet, with their positions in the round.
            part: the partial result; `None` makes groups without responses for all remaining prompts.
        """
        if part is None:
            for index, prompt in asked:
                yield _without_rollouts(prompt, plan, index, version=self._current()[1])
            return
        self._heard(part, plan)
        for group in part.records(RolloutGroup):
            _, prompt = next(asked)
            yield replace(group, prompt=prompt)


def _check(batch: int, placements: Sequence[Placement]) -> None:
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, got {batch}")
    if not placements:
        raise ConfigError("num_actors must be at least 1, got 0")


def group_of(
    prompt: Prompt,
    plan: RoundPlan,
    index: int,
    prompt_ids: np.ndarray,
    responses: tuple[Response, ...],
    *,
    version: int,
) -> RolloutGroup:
    """The rollout group of a prompt's responses.

    Args:
        version: version of the weights, which is used if no response has one.
    """
    versions = {response.sampled.policy_version for response in responses if response.sampled}
    return RolloutGroup(
        prompt=prompt,
        round=plan.round,
        index=index,
        policy_version=min(versions, default=version),
        prompt_token_ids=prompt_ids,
        responses=responses,
        failed=plan.num_candidates - sum(response.count for response in responses),
    )


def _without_rollouts(prompt: Prompt, plan: RoundPlan, index: int, *, version: int) -> RolloutGroup:
    return RolloutGroup(
        prompt=prompt,
        round=plan.round,
        index=index,
        policy_version=version,
        prompt_token_ids=np.zeros(0, np.int32),
        responses=(),
        failed=plan.num_candidates,
    )
