"""The common base of evaluations of responses to held-out prompts: the prompts and the seeds of the responses are the same at
every evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rlsys.asking.prompts import check_at_least
from rlsys.contracts import Asking
from rlsys.conversations.single_turn import completions_of, merged
from rlsys.records import Ask, Generation, Interval, Prompt, RolloutGroup, Sampling
from rlsys.seeding import child_seed

EVALUATION_ROUND = -1
"""Round number of held-out responses. It is the same at every evaluation, so that every policy is sampled with the same
seeds.
"""
RESAMPLE_SEED = 0
"""Seed of the bootstrap, constant so that equal responses get equal intervals in every run."""


@dataclass(kw_only=True)
class HeldOut:
    """Base of the evaluations that measure one response of the policy to each held-out prompt; a subclass adds `prompts` and
    `measure`.
    """

    roles: ClassVar[tuple[str, ...]] = ("policy",)

    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 64
    seed: int | None = None
    """Root of the seeds of the responses; `null` takes the run's seed."""
    resamples: int = 1000
    """Bootstrap resamples behind the 95 % intervals."""

    def __post_init__(self) -> None:
        check_at_least("evaluation", self, temperature=0, max_tokens=1, resamples=1)

    def prompts(self) -> list[Prompt]:
        """The held-out prompts, always the same."""
        raise NotImplementedError

    def measure(self, groups: Sequence[RolloutGroup]) -> dict[str, Interval]:
        """Metrics of the responses, each with its bootstrap 95 % interval."""
        raise NotImplementedError

    def run(self) -> Asking[dict[str, Interval]]:
        """Ask the policy once for every held-out prompt, all in one wave."""
        prompts = self.prompts()
        asks = [self.ask(prompt) for prompt in prompts]
        generations = yield asks
        return self.measure([responses_of(ask, one) for ask, one in zip(asks, generations, strict=True)])

    def ask(self, prompt: Prompt, role: str = "policy") -> Ask:
        """The request for one response to a prompt."""
        seed = child_seed(self.seed or 0, "rollout", EVALUATION_ROUND, prompt.id, 0)
        sampling = Sampling(temperature=self.temperature, max_tokens=self.max_tokens, seed=seed)
        return Ask(role=role, prompt=prompt, sampling=sampling)


def responses_of(ask: Ask, generation: Generation) -> RolloutGroup:
    """A held-out prompt with the responses to it; without responses if the engine delivered none."""
    responses = merged(completions_of([generation], [ask.sampling]))
    return RolloutGroup(
        prompt=ask.prompt,
        round=EVALUATION_ROUND,
        index=0,
        policy_version=generation.version,
        prompt_token_ids=generation.prompt_token_ids,
        responses=responses,
        failed=ask.sampling.num_samples - len(generation.completions),
    )
