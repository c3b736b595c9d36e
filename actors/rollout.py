"""The worker that samples responses to prompts with one engine. This module does not use Ray: `remote.py` runs the worker in a
process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.partial import PartialResult, partial_results
from actors.roles import generations
from rlsys import wire
from rlsys.asking.driver import regroup
from rlsys.conversations.single_turn import completions_of, first_samplings, merged
from rlsys.errors import EngineError
from rlsys.records import Completion, Generation, Probe, Prompt, RolloutGroup, RoundPlan, Sampling


class RolloutWorker:
    """A worker with an engine that holds the policy's weights."""

    def __init__(self, *, engine: Any, model: str, version: int, seed: int) -> None:
        """
        Args:
            engine: a plug-in of group `engine` (`actors.engines`).
            model: checkpoint that the engine loads.
            version: version of the checkpoint's weights.
            seed: root seed of the run.
        """
        self._engine = engine.open(model, version=version)
        self._seed = seed

    def rollout(self, frame: bytes, plan: RoundPlan, start: int, skip: int = 0) -> Iterator[PartialResult]:
        """Sample responses to the prompts of a frame.

        Args:
            start: position of the first prompt in its round.
            skip: number of leading groups that are not yielded. Their responses are sampled nevertheless, because the last
                digits of a generation depend on what the engine computes in the same batch.

        Yields:
            Rollout groups in the order of the prompts, each as soon as its last response is complete. The groups' prompts have
            no images, because the caller has them.
        """
        yield from partial_results(
            self._groups(frame, plan, start), skip=skip, notes=getattr(self._engine, "notes", None)
        )

    def respond(self, frame: bytes, skip: int = 0) -> Iterator[PartialResult]:
        """Answer questions to the policy, which are in a frame of `Ask`; see `actors.roles.generations`."""
        yield from generations(self._engine, frame, skip)

    def answer(self, frame: bytes, sampling: Sampling) -> bytes:
        """Make probes: sample one response to every prompt, and return a frame of `Probe`, whose prompts have their images. A
        prompt that the policy cannot process is left out.

        Raises:
            EngineError: the policy can process none of the prompts.
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
        """float32 [T] for every probe in a frame: the logprobs of its T response tokens."""
        return self._engine.logprobs(wire.decode_many(frame, Probe))

    def connect(self, offer: dict[str, Any]) -> None:
        """Join the weight sender that made `offer`."""
        self._engine.connect(offer)

    def update(self, manifest: dict[str, Any], version: int) -> dict[str, Any]:
        """Receive and load new weights, and return the engine's report of the received weights."""
        self._engine.begin_update()
        self._engine.receive(manifest)
        return self._engine.end_update(version)

    def close(self) -> None:
        """Free the device."""
        self._engine.close()

    def _groups(self, frame: bytes, plan: RoundPlan, start: int) -> Iterator[list[tuple[RolloutGroup]]]:
        prompts = wire.decode_many(frame, Prompt)
        asked = [first_samplings(prompt, plan, self._seed) for prompt in prompts]
        requests = [(prompt, one) for prompt, own in zip(prompts, asked, strict=True) for one in own]
        left = enumerate(zip(prompts, asked, strict=True), start)
        for whole in regroup(self._engine.stream(requests), map(len, asked)):
            groups = []
            for found, (index, (prompt, samplings)) in zip(whole, left, strict=False):
                groups.append((self._group(prompt, plan, index, samplings, found),))
            yield groups

    def _group(
        self, prompt: Prompt, plan: RoundPlan, index: int, samplings: Sequence[Sampling], found: Sequence[Generation]
    ) -> RolloutGroup:
        version = self._engine.version
        stamped = [replace(generation, version=version) for generation in found]
        responses = merged(completions_of(stamped, samplings))
        return RolloutGroup(
            prompt=replace(prompt, images=()),
            round=plan.round,
            index=index,
            policy_version=version,
            prompt_token_ids=found[0].prompt_token_ids,
            responses=responses,
            failed=plan.num_candidates - sum(response.count for response in responses),
        )


def _with_room(completion: Completion) -> tuple[int, ...]:
    """The tokens of a response, for a probe. A response that was cut off loses its last token: it may fill the context of the
    engine completely, and would then be too long for the computation of its logprobs."""
    ids = completion.token_ids.tolist()
    return tuple(ids[:-1] if completion.finish_reason == "length" and len(ids) > 1 else ids)
