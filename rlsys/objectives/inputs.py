"""What objectives are given and what they return. B examples of a micro-batch, M tokens of one response each of them; all
tensors float32 unless said otherwise.

An objective is a registered dataclass whose fields are its hyper-parameters. It is a pure function of what is known of each
token: no collectives, no randomness, no denominators. The learner divides the summed loss by the number of examples (or
tokens) of the whole batch, on all ranks, so that accumulation and ranks change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rlsys.common.lazy import torch

NEEDS = frozenset({"reference", "old", "values", "mismatched"})
"""What an objective may ask for besides log-probabilities; see `Objective.needs`."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """Sums over the examples given."""

    loss: torch.Tensor
    """Scalar, with gradient."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scalars, detached; summed over all micro-batches and ranks and divided by the number of examples."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Token by token what is known of B responses, one after the other in one row of M tokens.

    Sums and means over a response leave out the tokens that carry no loss.
    """

    size: int
    """B."""
    owners_M: torch.Tensor
    """int64, the response of each token, ascending."""
    mask_M: torch.Tensor
    """1 for tokens that carry loss, 0 for others (a user's turns between the policy's own)."""
    logps_M: torch.Tensor
    """Log-probability under the policy, nats, with gradient."""
    reference_logps_M: torch.Tensor | None = None
    """Under the reference, without gradient; `None` unless needed, as all that follow."""
    old_logps_M: torch.Tensor | None = None
    """Under the weights that sampled the response."""
    values_M: torch.Tensor | None = None
    """The value of the prompt and the response up to this token (without it): the raw logit of a reserved token there, with
    gradient."""

    @classmethod
    def of(cls, logps: list[list[float]], **others: list[list[float]]) -> Sequences:
        """Sequences of numbers that are written down, for tests and for trying an objective out.

        Sequences.of([[-1.0, -2.0], [-0.5]], reference_logps=[[-1.0, -1.0], [-0.5]])

        Args:
            logps: of the tokens of each response; its gradient is kept.
            others: the other fields, without `_M`; `mask` is all ones if it is not given.
        """

        def row(values: list[list[float]]) -> torch.Tensor:
            return torch.tensor([value for one in values for value in one], dtype=torch.float32)

        owners = [number for number, one in enumerate(logps) for _ in one]
        mask = others.pop("mask", [[1.0] * len(one) for one in logps])
        return cls(
            size=len(logps),
            owners_M=torch.tensor(owners, dtype=torch.int64),
            mask_M=row(mask),
            logps_M=row(logps).requires_grad_(),
            **{f"{name}_M": row(values) for name, values in others.items()},
        )

    def sums(self, values_M: torch.Tensor) -> torch.Tensor:
        """[B] sum of a value per token over each response's tokens that carry loss."""
        return values_M.new_zeros(self.size).index_add(0, self.owners_M, values_M * self.mask_M)

    def means(self, values_M: torch.Tensor) -> torch.Tensor:
        """[B] mean of a value per token over each response's tokens that carry loss."""
        return self.sums(values_M) / self.num_tokens_B

    def spread(self, values_B: torch.Tensor) -> torch.Tensor:
        """[M] a value per response at each of its tokens."""
        return values_B.index_select(0, self.owners_M)

    @property
    def num_tokens_B(self) -> torch.Tensor:
        """Tokens that carry loss, whole numbers of at least 1."""
        return self.sums(torch.ones_like(self.mask_M))

    @property
    def logps_B(self) -> torch.Tensor:
        """Log-probability of each response under the policy, nats."""
        return self.sums(self.logps_M)

    @property
    def reference_logps_B(self) -> torch.Tensor:
        """Log-probability of each response under the reference, nats, added up in float64 as it is a constant."""
        return self.sums(self.reference_logps_M.double()).float()

    @property
    def log_ratios_B(self) -> torch.Tensor:
        """rho of each response: its log-probability under the policy minus that under the reference, nats."""
        return self.logps_B - self.reference_logps_B

    @property
    def nll_B(self) -> torch.Tensor:
        """Negative log-likelihood per token of each response, nats."""
        return -self.logps_B / self.num_tokens_B


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Base of the input records.

    Names in them tell what a field holds: `..._B` is a tensor with one number per example, `is_..._B` and `has_..._B` with
    one bool.
    """

    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    """What `Objective.statistics` found, summed over the whole batch of all ranks; scalars. Empty for objectives without."""


@dataclass(frozen=True, kw_only=True)
class SequenceInputs(Inputs):
    """Demonstrations."""

    responses: Sequences


@dataclass(frozen=True, kw_only=True)
class PairInputs(Inputs):
    """Preference pairs."""

    chosen: Sequences
    rejected: Sequences
    beta_scale_B: torch.Tensor
    """The pair's beta is the objective's times this."""

    @property
    def margins_B(self) -> torch.Tensor:
        """Log-ratio of the chosen answer minus that of the rejected one, nats."""
        return self.chosen.log_ratios_B - self.rejected.log_ratios_B


@dataclass(frozen=True, kw_only=True)
class ScoredInputs(Inputs):
    """Scored responses."""

    responses: Sequences
    advantages_B: torch.Tensor
    scores_B: torch.Tensor
    """Score units."""


@dataclass(frozen=True, kw_only=True)
class RatedInputs(Inputs):
    """Responses that are good or bad each by itself."""

    responses: Sequences
    is_desirable_B: torch.Tensor
    mismatched: Sequences
    """Responses to other prompts, each after one of this micro-batch's prompts: for one example of every prompt of the batch
    where the objective needs them, else none. Not aligned with the examples."""


@dataclass(frozen=True, kw_only=True)
class CritiqueInputs(Inputs):
    """Pairs of judged answers, each with its critique and the raw logit of the score token after it."""

    chosen: Sequences
    """The critiques, score token included, at least that."""
    rejected: Sequences
    chosen_scores_B: torch.Tensor
    rejected_scores_B: torch.Tensor
    has_critiques_B: torch.Tensor
    """bool; `False` where one of the two has no critique."""


@runtime_checkable
class Objective(Protocol):
    """A plug-in of group `objective`.

    An objective may also have a method `statistics(inputs) -> dict[str, torch.Tensor]`: scalars that are summed over all
    micro-batches and ranks in a first pass over the batch, without gradient, and come back in `inputs.statistics`, for what
    only the whole batch tells (a baseline, a mean to be taken off). Its names must not depend on the inputs, which may hold no
    example at all. The first pass costs a forward pass; objectives without the method do not have it.
    """

    consumes: type
    """Record class of the examples, registered by `rlsys.records.example`."""

    @property
    def needs(self) -> frozenset[str]:
        """What is computed or read besides log-probabilities under the policy: any of `reference` (log-probabilities under the
        reference of the schedule's rule), `old` (those recorded when the response was sampled), `values` (the logit of the
        token that the objective's field `value_token` names) and `mismatched` (responses to other prompts)."""

    @property
    def denominator(self) -> str:
        """What the summed loss is divided by: the batch's `examples`, or its `tokens` that carry loss."""

    def __call__(self, inputs: Any) -> LossOutput:
        """Loss and metrics, summed over the examples given."""
