"""Answers to prompts, from one engine. No Ray in here: `remote.py` puts the worker into a process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from actors.partial import PartialResult, partial_results, regroup
from rlsys import wire
from rlsys.contracts import Request
from rlsys.errors import EngineError
from rlsys.records import Completion, Generation, Probe, Prompt, Rollout, RolloutGroup, RoundPlan, Sampling
from rlsys.seeding import child_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTask:
    """What to do with a chunk of a round's prompts."""

    round: int
    start: int
    """Position of the chunk's first prompt in its round."""
    num_candidates: int
    temperatures: tuple[float, ...]
    top_p: float
    max_tokens: int

    @classmethod
    def of(cls, plan: RoundPlan, start: int) -> RolloutTask:
        """The chunk of a round that begins at `start`."""
        return cls(
            round=plan.round,
            start=start,
            num_candidates=plan.num_candidates,
            temperatures=tuple(plan.temperatures),
            top_p=plan.top_p,
            max_tokens=plan.max_tokens,
        )


class RolloutWorker:
    """Holds an engine with the policy's weights."""

    def __init__(self, *, engine: Any, model: str, version: int, seed: int) -> None:
        """
        Args:
            engine: a plug-in of group `engine` (`actors.engines`).
            model: checkpoint to open.
            version: of its weights.
            seed: root seed of the run.
        """
        self._engine = engine.open(model, version=version)
        self._seed = seed

    def rollout(self, frame: bytes, task: RolloutTask, skip: int = 0) -> Iterator[PartialResult]:
        """Answer the prompts of a frame.

        Args:
            skip: groups at the beginning that are not wanted. Their prompts are answered none the less: the last digits
                of an answer depend on what is computed beside it.

        Yields:
            Rollout groups in the order of the prompts, each when its last answer is there. Their prompts are without
            images: the caller has them.
        """
        yield from partial_results(self._groups(frame, task), skip=skip, notes=getattr(self._engine, "notes", None))

    def answer(self, frame: bytes, sampling: Sampling) -> bytes:
        """One candidate per prompt, as probes of it: a frame of `Probe`, prompts with their images. A prompt that the policy
        does not take is left out.

        Raises:
            EngineError: it takes none.
        """
        prompts = wire.decode_many(frame, Prompt)
        generations = self._engine.generate([(prompt, sampling) for prompt in prompts])
        probes = [
            Probe(
                prompt=prompt,
                prompt_token_ids=tuple(generation.prompt_token_ids.tolist()),
                response_token_ids=_with_room(generation.completions[0]),
            )
            for prompt, generation in zip(prompts, generations, strict=True)
            if generation.completions
        ]
        if not probes:
            raise EngineError(f"none of the probes' {len(prompts)} prompts can be answered: {prompts[0].id!r}, ...")
        return wire.encode_many(probes)

    def version(self) -> int:
        """Version of the weights that the engine holds."""
        return self._engine.version

    def logprobs(self, frame: bytes) -> list[np.ndarray]:
        """float32 [T] log-probabilities of the response tokens of every probe in a frame."""
        return self._engine.logprobs(wire.decode_many(frame, Probe))

    def connect(self, offer: dict[str, Any]) -> None:
        """Join the sender of weights that made `offer`."""
        self._engine.connect(offer)

    def update(self, manifest: dict[str, Any], version: int) -> dict[str, Any]:
        """Take new weights; the engine's report of what came."""
        self._engine.begin_update()
        self._engine.receive(manifest)
        return self._engine.end_update(version)

    def close(self) -> None:
        """Free the device."""
        self._engine.close()

    def _request(self, prompt: Prompt, task: RolloutTask, number: int, num_samples: int) -> Request:
        return prompt, Sampling(
            num_samples=num_samples,
            temperature=task.temperatures[number],
            top_p=task.top_p,
            max_tokens=task.max_tokens,
            seed=child_seed(self._seed, "rollout", task.round, prompt.id, number),
        )

    def _groups(self, frame: bytes, task: RolloutTask) -> Iterator[list[tuple[RolloutGroup]]]:
        prompts = wire.decode_many(frame, Prompt)
        shares = candidates_per_temperature(task.num_candidates, len(task.temperatures))
        asked = [
            [self._request(prompt, task, i, share) for i, share in enumerate(shares) if share] for prompt in prompts
        ]
        generations = self._engine.stream([request for requests in asked for request in requests])
        left = enumerate(zip(prompts, asked, strict=True))
        for whole in regroup(generations, map(len, asked)):
            groups = []
            for found, (number, (prompt, requests)) in zip(whole, left, strict=False):
                groups.append((self._group(prompt, task, number, list(zip(requests, found, strict=True))),))
            yield groups

    def _group(
        self, prompt: Prompt, task: RolloutTask, index: int, answered: Sequence[tuple[Request, Generation]]
    ) -> RolloutGroup:
        rollouts = merged([(one, sampling) for (_, sampling), found in answered for one in found.completions])
        delivered = sum(rollout.count for rollout in rollouts)
        return RolloutGroup(
            prompt=replace(prompt, images=()),
            round=task.round,
            index=task.start + index,
            policy_version=self._engine.version,
            prompt_token_ids=answered[0][1].prompt_token_ids,
            rollouts=rollouts,
            failed=task.num_candidates - delivered,
        )


def _with_room(answer: Completion) -> tuple[int, ...]:
    """Its tokens. One that was cut off may fill the engine to its last token, and be too long to be scored: it loses one."""
    ids = answer.token_ids.tolist()
    return tuple(ids[:-1] if answer.finish_reason == "length" and len(ids) > 1 else ids)


def candidates_per_temperature(num_candidates: int, num_temperatures: int) -> list[int]:
    """Even shares; the first ones get what is left over.

    >>> candidates_per_temperature(8, 3)
    [3, 3, 2]
    """
    base, over = divmod(num_candidates, num_temperatures)
    return [base + (number < over) for number in range(num_temperatures)]


def merged(completions: Sequence[tuple[Completion, Sampling]]) -> tuple[Rollout, ...]:
    """Distinct answers of every request in order of first appearance, with their counts.

    The same tokens of two requests, that is of two temperatures, stay apart: temperature and seed are true of every copy.
    """
    found: dict[tuple, Rollout] = {}
    for one, sampling in completions:
        key = (one.token_ids.tobytes(), sampling.temperature, sampling.seed)
        if key in found:
            found[key] = replace(found[key], count=found[key].count + 1)
        else:
            found[key] = Rollout(
                text=one.text,
                token_ids=one.token_ids,
                logprobs=one.logprobs,
                count=1,
                finish_reason=one.finish_reason,
                temperature=sampling.temperature,
                seed=sampling.seed,
            )
    return tuple(found.values())
