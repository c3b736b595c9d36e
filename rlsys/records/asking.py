"""What an engine is asked, and what it returns."""

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
    """A special token that ends the answer, besides end-of-sequence."""
    score_token: str | None = None
    """If set, the raw (unnormalised) logit of this token is returned where it was emitted."""
    candidate_tokens: tuple[str, ...] = ()
    """Texts of single tokens whose values are returned at every generated position (`Completion.candidate_values`), for
    example `("yes", "no")`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One question to a named engine."""

    role: str
    """`policy`, `judge`, or any role that `engines` of the configuration names."""
    prompt: Prompt
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Completion:
    """One sampled continuation, as an engine returns it."""

    text: str
    """Decoded without special tokens."""
    token_ids: TokenIds
    """int32 [T], the ending token included if one was emitted."""
    logprobs: TokenFloats
    """float32 [T], at temperature 1."""
    finish_reason: str
    """`stop` (end-of-sequence), `stop_token` (`Sampling.stop_token`, the last of `token_ids`) or `length`."""
    score_logits: TokenFloats | None = None
    """float32 [T], raw logit of `Sampling.score_token` at the positions that emitted it, nan at others; `None` if not asked
    for."""
    candidate_values: CandidateFloats | None = None
    """float32 [T, C], one value per candidate token at every position: its log-probability, or its raw logit if the engine
    was opened for scores; the two differ by a constant per position, which a softmax over the candidates takes out. Minus
    infinity for a text that is not one token of this model, or is the same token as an earlier candidate; `None` if not
    asked for."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """An engine's answer to one request."""

    prompt_token_ids: TokenIds
    """int32 [S], image placeholders expanded."""
    version: int = 0
    """Version of the weights that answered."""
    completions: tuple[Completion, ...]
    """As many as `Sampling.num_samples`; fewer if some failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A fixed sequence that engine and learner both score after a weight update."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]
