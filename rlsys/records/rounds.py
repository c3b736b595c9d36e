"""What a round is to do, and what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


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
    reference: str
    """`initial`, `previous` or `ema`."""
    lag: int
    """Rounds that generation may run ahead of training."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of plug-ins that this round sets, by group (`objective`, `examples`, ...); ramps are worked out. The key `name`
    stands for another plug-in of the group."""
    brings_others: bool = False
    """Whether the round's replay puts examples among its own that do not come from the round."""

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
    """Means over examples of what the objective gives (`implicit_accuracy`, ...), and `grad_norm`, `kl`, ..."""
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
    """The round's own; what its replay brought is in `replayed`."""
    failed: dict[str, int]
    """`rollouts`, `critiques`, `workers`: what was asked for and did not come."""
    staleness: int
    """Rounds between the start of the round whose weights sampled the responses and the start of this one; at most the lag."""
    loss: float
    kl: float
    """KL(the policy that responded || the policy after the round), nats per response at temperature 1: k3 estimate on those of
    the round's own responses that take part in examples, each once with its copies counted. Responses that were sampled at
    another temperature, or with top_p below 1, come from another distribution and are left out; not a number if none is
    left."""
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
    replayed: dict[str, int] = field(default_factory=dict)
    """Examples that the round trained on and that are not its own, by source; copies in later epochs are not counted."""
