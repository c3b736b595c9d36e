"""The records that travel between stages: frozen, plain, and free of heavy imports.

    Prompt -> RolloutGroup (of Rollout) -> ScoredGroup (of Critique) -> PreferencePair -> learner
    Demonstration and CritiquePair -> learner (objectives `sft` and `critique_reward`)
    RoundPlan says what a round should do; RoundReport what it did.

Array letters: T tokens of one answer, S tokens of one prompt (image placeholders expanded), H and W image rows and columns.
No record holds a truth: whoever may read the truth makes it again from `Prompt.id`.
Who has a slot for weak references can be known again without being kept alive, as the journal does.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from rlsys.common.checksum import content_key

Pixels = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
TokenIds = np.ndarray[tuple[int], np.dtype[np.int32]]
TokenFloats = np.ndarray[tuple[int], np.dtype[np.float32]]
"""Arrays declare dtype and rank in their hint: `wire.py` refuses any other."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """A picture, equal to another if its pixels are.

    Raises:
        ValueError: `pixels` is not uint8 of shape [H, W, 3].
    """

    pixels: Pixels
    """uint8 [H, W, 3], RGB."""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(f"Image.pixels must be uint8 [H, W, 3], got {self.pixels.dtype} {self.pixels.shape}")

    @cached_property
    def digest(self) -> str:
        """Content hash (128 bits, hex) over shape and pixels."""
        return content_key(repr(self.pixels.shape).encode(), np.ascontiguousarray(self.pixels)).hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    text: str


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Prompt:
    """What the policy is asked."""

    id: str
    """Unique and stable: the same id is the same prompt in every run."""
    turns: tuple[Turn, ...]
    """The conversation so far; the last turn is the user's."""
    images: tuple[Image, ...] = ()
    """Shown before the first user turn's text, in order."""

    @property
    def question(self) -> str:
        """Text of the last turn."""
        return self.turns[-1].text


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class Rollout:
    """One distinct answer to one request about a prompt."""

    text: str
    token_ids: TokenIds
    """int32 [T], end-of-sequence token included if the engine emitted it."""
    logprobs: TokenFloats
    """float32 [T], log-probability of each token under the weights that sampled it, at temperature 1."""
    count: int
    """How many candidates of its request were this very token sequence, at least 1."""
    finish_reason: str
    """`stop` (end-of-sequence) or `length` (cut at the token limit)."""
    temperature: float
    """Sampling temperature of every copy."""
    seed: int
    """Seed of the request that sampled every copy."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Rollout)
            and (self.text, self.count, self.finish_reason, self.temperature, self.seed)
            == (other.text, other.count, other.finish_reason, other.temperature, other.seed)
            and np.array_equal(self.token_ids, other.token_ids)
            and np.array_equal(self.logprobs, other.logprobs)
        )

    def __hash__(self) -> int:
        return hash((self.text, self.seed, self.token_ids.tobytes()))

    @property
    def logprob(self) -> float:
        """Sum of the token log-probabilities, nats."""
        return float(self.logprobs.sum(dtype=np.float64))


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True, eq=False)
class RolloutGroup:
    """All candidates of one prompt, sampled from one version of the weights."""

    prompt: Prompt
    round: int
    index: int
    """Position of the prompt in its round, from 0."""
    policy_version: int
    """Version of the weights that sampled every token in here."""
    prompt_token_ids: TokenIds
    """int32 [S], as the engine saw them: chat template applied, image placeholders expanded."""
    rollouts: tuple[Rollout, ...]
    """Distinct answers of every request in order of first appearance. A prompt is asked once per temperature: the same
    tokens at two temperatures are two entries, so that temperature and seed are true of every copy."""
    failed: int = 0
    """Candidates asked for and not delivered."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RolloutGroup)
            and (self.prompt, self.round, self.index, self.policy_version, self.rollouts, self.failed)
            == (other.prompt, other.round, other.index, other.policy_version, other.rollouts, other.failed)
            and np.array_equal(self.prompt_token_ids, other.prompt_token_ids)
        )

    def __hash__(self) -> int:
        return hash((self.prompt.id, self.round, self.index))


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """A judge's words on one answer, and the number they ended in."""

    text: str
    score: float
    """Score units of the judge; higher is better. Always finite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything the feedback said of one rollout."""

    critiques: tuple[Critique, ...]
    """Readable critiques; empty if none could be read."""
    failed: int = 0
    """Critiques asked for that could not be read or did not come."""

    @property
    def score(self) -> float | None:
        """Mean score over the critiques; `None` if there is none: the answer then takes part in no pair."""
        if not self.critiques:
            return None
        return sum(critique.score for critique in self.critiques) / len(self.critiques)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A rollout group with one verdict per rollout."""

    group: RolloutGroup
    verdicts: tuple[Verdict, ...]
    """As many as `group.rollouts`, in their order."""

    @property
    def scored(self) -> list[tuple[Rollout, float]]:
        """Rollouts that have a score, with it."""
        pairs = zip(self.group.rollouts, self.verdicts, strict=True)
        return [(rollout, verdict.score) for rollout, verdict in pairs if verdict.score is not None]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two answers to one prompt, the first preferred by the critic."""

    prompt: Prompt
    prompt_token_ids: TokenIds = field(compare=False)
    """int32 [S], as in the rollout group."""
    chosen: Rollout
    rejected: Rollout
    chosen_score: float
    rejected_score: float
    margin: float
    """`chosen_score - rejected_score`, score units, > 0. Data: never overwritten."""
    beta_scale: float
    """What the method makes of the margin: the pair's beta is `beta * beta_scale`. 1.0 is plain DPO."""
    round: int
    policy_version: int
    """Version of the weights that sampled both answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer to imitate (objective `sft`)."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiquePair:
    """Two annotated answers to one prompt (objective `critique_reward`)."""

    chosen_prompt: Prompt
    """The judge's prompt that shows the better answer."""
    rejected_prompt: Prompt
    chosen_critique: str
    """The annotator's critique of the better answer; empty if there is none (its loss is then masked)."""
    rejected_critique: str


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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Generation:
    """An engine's answer to one request."""

    prompt_token_ids: TokenIds
    """int32 [S], image placeholders expanded."""
    completions: tuple[Completion, ...]
    """As many as `Sampling.num_samples`; fewer if some failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A fixed sequence that engine and learner both score after a weight update."""

    prompt: Prompt
    prompt_token_ids: tuple[int, ...]
    response_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """What one round is to do: a phase of the schedule with its ramps worked out."""

    round: int
    """From 0; negative where held-out prompts are answered, for an evaluation."""
    num_prompts: int
    num_candidates: int
    """Candidates per prompt, shared evenly between the temperatures."""
    temperatures: tuple[float, ...]
    top_p: float
    max_tokens: int
    epochs: int
    lr: float
    beta: float
    scale_w: float
    """w of dynamic reward scaling (MM-RLHF section 4.2); 0 is plain DPO."""
    scale_k: float
    pairs: str
    """Name of the pair builder."""
    min_margin: float
    max_pairs_per_prompt: int
    """0 is no limit."""
    reference: str
    """`initial`, `previous` or `ema`."""
    data: str
    """`current` or `accumulated`."""
    lag: int
    """Rounds that generation may run ahead of training."""

    @property
    def is_held_out(self) -> bool:
        """Whether it is no round of training."""
        return self.round < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measured value with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a weight update delivered, and the proof of it."""

    version: int
    num_tensors: int
    num_bytes: int
    digest: str
    """Of names, dtypes, shapes and bytes, in order (`rlsys.transports.digest`); equal on sender and every receiver."""
    seconds: float
    max_logprob_gap: float
    """Largest absolute difference, nats per token, between engine and learner on the probe sequences."""
    num_probe_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What the learner did in a round."""

    num_pairs: int
    num_steps: int
    loss: float
    """Mean over the pairs of all epochs."""
    metrics: dict[str, float]
    """Means over pairs of what the objective gives (`implicit_accuracy`, `reward_margin`, ...), and `grad_norm`, `kl`, ..."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What one round did; a line of `metrics.jsonl` and an entry of `summary.json`."""

    round: int
    policy_version: int
    """Version after the round."""
    num_prompts: int
    num_rollouts: int
    """Candidates delivered, copies counted."""
    num_pairs: int
    """New ones; rounds on accumulated data train on those of earlier rounds as well."""
    failed: dict[str, int]
    """`rollouts`, `critiques`, `workers`: what was asked for and did not come."""
    staleness: int
    """Rounds between the start of the round whose weights sampled the answers and the start of this one; at most the lag."""
    loss: float
    kl: float
    """KL(the policy that answered || the policy after the round), nats per answer at temperature 1: k3 estimate on those of
    the round's own answers that take part in pairs, each once with its copies counted. Answers that were sampled at another
    temperature, or with top_p below 1, come from another distribution and are left out; not a number if none is left."""
    metrics: dict[str, float]
    """What the learner reports: the objective's own metrics (`implicit_accuracy` where it has implicit rewards, ...),
    `grad_norm`, `kl_initial`, ..."""
    sync: SyncReport
    eval: dict[str, Interval]
    """`chair_i`, `chair_s`, `recall`, `mean_length`, ... of the weights that the round trained, also if the gate then refused
    them; empty if not evaluated.
    """
    seconds: dict[str, float]
    """Busy seconds per stage: `rollout`, `feedback`, `learn`, `sync`, `evaluate`, `checkpoint`, and `round` (wall)."""
    accepted: bool = True
    """`False` if the gate refused the round and the weights went back."""
