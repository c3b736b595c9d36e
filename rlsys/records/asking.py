"""The requests that an engine gets, and the results that it returns."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.records.arrays import CandidateFloats, TokenFloats, TokenIds
from rlsys.records.prompts import Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a request is sampled."""

    num_samples: int = 1
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    max_tokens: int = 64
    seed: int = 0
    stop_token: str | None = None
    """A special token that ends the response, besides end-of-sequence."""
    score_token: str | None = None
    """If set, the raw (unnormalised) logit of this token is returned where it was emitted."""
    candidate_tokens: tuple[str, ...] = ()
    """Texts, each of a single token, whose values are returned at every generated position (`Completion.candidate_values`), for
    example `("yes", "no")`.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request to a named engine."""

    role: str
    """`policy`, `judge`, or any other role in `engines` of the configuration."""
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled continuation, as an engine returns it."""

    text: str
    """Text, decoded without special tokens."""
    token_ids: TokenIds
    """int32 [T], including the ending token if one was emitted."""
    logprobs: TokenFloats
    """float32 [T], at temperature 1."""
    finish_reason: str
    """`stop` (end-of-sequence), `stop_token` (`Sampling.stop_token`, the last of `token_ids`) or `length`."""
    score_logits: TokenFloats | None = None
    """float32 [T], raw logit of `Sampling.score_token` at the positions that emitted it and nan at the others; `None` if it was
    not asked for.
    """
    candidate_values: CandidateFloats | None = None
    """float32 [T, C], one value per candidate token at every position: its logprob, or its raw logit if the engine was opened
    for scores. The two differ by a constant per position, which a softmax over the candidates cancels. The value is minus
    infinity for a text that is not a single token of this model, or that is the same token as an earlier candidate. `None` if
    values were not asked for.
    """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """An engine's result for one request."""

    prompt_token_ids: TokenIds
    """int32 [S], image placeholders expanded."""
    version: int = 0
    """Version of the weights that generated the completions."""
    completions: tuple[Completion, ...]
    """As many as `Sampling.num_samples`; fewer if some failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A fixed sequence that both the engine and the learner score after a weight update."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
