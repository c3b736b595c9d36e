"""The plan of a round, and the report of what it did."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPlan:
    """The plan of one round: a phase of the schedule with the values of its ramps in this round."""

    round: int
    """Number of the round from 0; negative for the responses to held-out prompts of an evaluation."""
    num_prompts: int
    num_candidates: int
    """Candidates per prompt, divided evenly between the temperatures."""
    temperatures: tuple[float, ...]
    top_p: float
    max_tokens: int
    epochs: int
    lr: float
    reference: str
    """`initial`, `previous` or `ema`."""
    lag: int
    """Number of rounds that generation may run ahead of training."""
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of plug-ins that this round sets, by group (`objective`, `examples`, ...), with the values of ramps in this
    round. The key `name` selects another plug-in of the group.
    """
    brings_others: bool = False
    """Whether the round's replay adds examples that the round did not make."""

    @property
    def is_held_out(self) -> bool:
        """Whether this is the plan of an evaluation and not of a training round."""
        return self.round < 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A measured value with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncReport:
    """What a weight update delivered, and the check that it arrived."""

    version: int
    num_tensors: int
    num_bytes: int
    digest: str
    """Digest of names, dtypes, shapes and bytes, in order (`rlsys.transports.digest`); equal on the sender and every
    receiver.
    """
    seconds: float
    max_logprob_gap: float
    """Largest absolute difference, nats per token, between engine and learner on the probe sequences."""
    num_probe_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What the learner did in a round."""

    num_examples: int
    num_steps: int
    loss: float
    """Mean over the examples of all epochs."""
    metrics: dict[str, float]
    """Means over examples of the objective's metrics (`implicit_accuracy`, ...), and `grad_norm`, `kl`, ..."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundReport:
    """What one round did; a line of `metrics.jsonl` and an entry of `summary.json`."""

    round: int
    policy_version: int
    """Version of the policy after the round."""
    num_prompts: int
    num_responses: int
    """Number of candidates delivered, copies counted."""
    num_examples: int
    """Number of the round's own examples; examples that its replay added are in `replayed`."""
    failed: dict[str, int]
    """What was asked for and not delivered, by name: `rollouts`, `critiques`, `workers`."""
    staleness: int
    """Rounds between the start of the round whose weights sampled the responses and the start of this one; at most the lag."""
    loss: float
    kl: float
    """KL(the policy that sampled the responses || the policy after the round), nats per response at temperature 1. It is a k3
    estimate on those of the round's own responses that take part in examples, each once with its copies counted. Responses that
    were sampled at another temperature, or with top_p below 1, come from another distribution and are left out; NaN if no
    response remains.
    """
    metrics: dict[str, float]
    """The learner's metrics: those of the objective (`implicit_accuracy` where it has implicit rewards, ...), `grad_norm`,
    `kl_initial`, ...
    """
    sync: SyncReport
    eval: dict[str, Interval]
    """`chair_i`, `chair_s`, `recall`, `mean_length`, ... of the weights that the round trained, even if the gate then refused
    them; empty if the round was not evaluated.
    """
    seconds: dict[str, float]
    """Busy seconds per stage: `rollout`, `feedback`, `learn`, `sync`, `evaluate`, `checkpoint`, and `round` (wall)."""
    accepted: bool = True
    """`False` if the gate refused the round and the last accepted weights were restored."""
    replayed: dict[str, int] = field(default_factory=dict)
    """Number of examples from other rounds or sources that the round trained on, by source; copies in later epochs are not
    counted.
    """
