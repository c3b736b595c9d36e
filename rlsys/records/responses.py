"""The responses of a model, and where each response comes from."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.records.arrays import TokenFloats, TokenIds, TokenMask
from rlsys.records.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sampled:
    """How an engine of this run sampled a response."""

    policy_version: int
    """Version of the weights that sampled every token."""
    logprobs: TokenFloats
    """float32 [T], logprob of each token under these weights at temperature 1; 0 where the loss mask is 0."""
    temperature: float
    seed: int
    """Seed of the request."""
    top_p: float = 1.0

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sampled)
            and (self.policy_version, self.temperature, self.seed, self.top_p)
            == (other.policy_version, other.temperature, other.seed, other.top_p)
            and np.array_equal(self.logprobs, other.logprobs)
        )

    def __hash__(self) -> int:
        return hash((self.policy_version, self.temperature, self.seed))


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Response:
    """One response to a prompt: sampled by an engine, written or corrected by a person, or taken from a data set.

    A conversation is one response of several turns: the tokens of the user's turns are between the policy's tokens, and the
    loss mask excludes them.
    """

    id: str = ""
    """Distinguishes the responses to one prompt; empty if nothing refers to it."""
    text: str
    token_ids: TokenIds
    """int32 [T], including the end-of-sequence token if there is one. It is empty where only the text is known; the learner
    then tokenizes it.
    """
    loss_mask: TokenMask | None = None
    """uint8 [T], 1 for the policy's own tokens, which alone contribute to the loss; `None` if all tokens do."""
    finish_reason: str = "stop"
    """`stop` (end-of-sequence) or `length` (cut at the token limit)."""
    count: int = 1
    """Number of candidates of the request that were exactly this token sequence, at least 1."""
    sampled: Sampled | None = None
    """How the response was sampled; `None` if no engine of this run sampled it."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Response)
            and (self.id, self.text, self.finish_reason, self.count, self.sampled)
            == (other.id, other.text, other.finish_reason, other.count, other.sampled)
            and np.array_equal(self.token_ids, other.token_ids)
            and _same_mask(self.loss_mask, other.loss_mask)
        )

    def __hash__(self) -> int:
        return hash((self.text, self.sampled, self.token_ids.tobytes()))

    @property
    def logprob(self) -> float:
        """Sum of the recorded token logprobs, nats.

        Raises:
            ValueError: no engine sampled the response.
        """
        if self.sampled is None:
            raise ValueError(f"a response that no engine sampled has no log-probability: {self.text!r}")
        return float(self.sampled.logprobs.sum(dtype=np.float64))


def text_response(text: str) -> Response:
    """A response of which only the text is known, such as one written by a person."""
    return Response(text=text, token_ids=np.zeros(0, dtype=np.int32))


def _same_mask(one: TokenMask | None, other: TokenMask | None) -> bool:
    if one is None or other is None:
        return one is other
    return np.array_equal(one, other)


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class RolloutGroup:
    """All candidates of one prompt, sampled from one version of the weights."""

    prompt: Prompt
    round: int
    index: int
    """Position of the prompt in its round, from 0."""
    policy_version: int
    """Version of the weights that sampled every token of the group."""
    prompt_token_ids: TokenIds
    """int32 [S], as the engine saw them: chat template applied, image placeholders expanded."""
    responses: tuple[Response, ...]
    """Distinct responses of every request, in order of first appearance. A prompt is sent once per temperature. Equal tokens at
    two temperatures are two entries, so that the sampling data of an entry holds for all its copies.
    """
    failed: int = 0
    """Number of candidates that were asked for and not delivered."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RolloutGroup)
            and (self.prompt, self.round, self.index, self.policy_version, self.responses, self.failed)
            == (other.prompt, other.round, other.index, other.policy_version, other.responses, other.failed)
            and np.array_equal(self.prompt_token_ids, other.prompt_token_ids)
        )

    def __hash__(self) -> int:
        return hash((self.prompt.id, self.round, self.index))
