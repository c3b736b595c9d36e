"""One response to a prompt, and no further turn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from rlsys import registry
from rlsys.contracts import Asking
from rlsys.records import Ask, Completion, Generation, Prompt, Response, RoundPlan, Sampled, Sampling, TokenIds
from rlsys.seeding import child_seed


@registry.conversation("single_turn")
@dataclass(kw_only=True)
class SingleTurn:
    """The policy responds once. A round's stage takes these responses in calls of their own, which are the fastest; the
    program here gives the same ones.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def respond(self, prompt: Prompt, plan: RoundPlan, seed: int) -> Asking[tuple[TokenIds, tuple[Response, ...]]]:
        """Distinct responses in order of first appearance, copies counted."""
        samplings = first_samplings(prompt, plan, seed)
        generations = yield [Ask(role="policy", prompt=prompt, sampling=sampling) for sampling in samplings]
        return generations[0].prompt_token_ids, merged(completions_of(generations, samplings))


def first_samplings(prompt: Prompt, plan: RoundPlan, seed: int) -> list[Sampling]:
    """The requests of a prompt's first turn: one per temperature, the candidates shared evenly between them."""
    shares = candidates_per_temperature(plan.num_candidates, len(plan.temperatures))
    return [
        Sampling(
            num_samples=share,
            temperature=plan.temperatures[number],
            top_p=plan.top_p,
            max_tokens=plan.max_tokens,
            seed=child_seed(seed, "rollout", plan.round, prompt.id, number),
        )
        for number, share in enumerate(shares)
        if share
    ]


def candidates_per_temperature(num_candidates: int, num_temperatures: int) -> list[int]:
    """Even shares; the first ones get what is left over.

    >>> candidates_per_temperature(8, 3)
    [3, 3, 2]
    """
    base, over = divmod(num_candidates, num_temperatures)
    return [base + (number < over) for number in range(num_temperatures)]


def completions_of(
    generations: Sequence[Generation], samplings: Sequence[Sampling]
) -> Iterator[tuple[Completion, Sampling, int]]:
    """Every completion with the sampling that it was asked for with, and the version of the weights."""
    for generation, sampling in zip(generations, samplings, strict=True):
        for completion in generation.completions:
            yield completion, sampling, generation.version


def merged(completions: Iterator[tuple[Completion, Sampling, int]]) -> tuple[Response, ...]:
    """Distinct responses in order of first appearance, with their counts. Equal tokens of two temperatures stay two
    responses, so that what each says of its sampling is true of all its copies.
    """
    found: dict[tuple[bytes, int], Response] = {}
    for one, sampling, version in completions:
        key = one.token_ids.tobytes(), sampling.seed
        if key in found:
            found[key] = replace(found[key], count=found[key].count + 1)
        else:
            found[key] = Response(
                id=str(len(found)),
                text=one.text,
                token_ids=one.token_ids,
                finish_reason=one.finish_reason,
                sampled=sampled_as(sampling, one.logprobs, version),
            )
    return tuple(found.values())


def sampled_as(sampling: Sampling, logprobs: np.ndarray, version: int) -> Sampled:
    """What a response records of how it was sampled."""
    return Sampled(
        policy_version=version,
        logprobs=logprobs,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )
