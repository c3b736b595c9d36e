"""The inputs that objectives receive, and the outputs that they return.

Letters in shapes: B examples of a micro-batch, M tokens of B responses, one response of each example. All tensors are float32
unless stated otherwise.

An objective is a registered dataclass whose fields are its hyper-parameters. It is a pure function of the data of each token:
it uses no collectives, no randomness and no denominators. The learner divides the summed loss by the number of examples (or
tokens) of the whole batch on all ranks, so that neither accumulation nor the number of ranks changes the result.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rlsys.common.lazy import torch

NEEDS = frozenset({"reference", "old", "values", "mismatched"})
"""The data that an objective may ask for besides logprobs under the policy; see `Objective.needs`."""


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """Loss and metrics, summed over the examples of the input."""

    loss: torch.Tensor
    """Scalar, with gradient."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Detached scalars. The learner sums them over all micro-batches and ranks and divides by the number of examples."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Data of each token of B responses, which stand one after the other in one row of M tokens.

    Sums and means over a response leave out the tokens that carry no loss. The fields from `reference_logps_M` on are `None`
    unless the objective needs them.
    """

    size: int
    """B, the number of responses."""
    owners_M: torch.Tensor
    """int64, the number of the response that each token belongs to, ascending."""
    mask_M: torch.Tensor
    """1 for tokens that carry loss, 0 for others (a user's turns between the policy's own)."""
    logps_M: torch.Tensor
    """Logprobs under the policy, nats, with gradient."""
    reference_logps_M: torch.Tensor | None = None
    """Logprobs under the reference, nats, without gradient."""
    old_logps_M: torch.Tensor | None = None
    """Logprobs under the weights that sampled the response, nats, without gradient."""
    values_M: torch.Tensor | None = None
    """Values of the prompt with the response before each token, with gradient. The value is the raw logit of a reserved token
    at the position that predicts the token."""

    @classmethod
    def of(cls, logps: list[list[float]], **others: list[list[float]]) -> Sequences:
        """Make sequences from lists of numbers, for tests and for trying an objective out.

        Sequences.of([[-1.0, -2.0], [-0.5]], reference_logps=[[-1.0, -1.0], [-0.5]])

        Args:
            logps: logprobs of the tokens of each response; the resulting tensor requires a gradient.
            others: the other fields, by their names without `_M`; `mask` is all ones if it is not given.
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
        """Sum a value per token over each response's tokens that carry loss; the result is [B]."""
        return values_M.new_zeros(self.size).index_add(0, self.owners_M, values_M * self.mask_M)

    def means(self, values_M: torch.Tensor) -> torch.Tensor:
        """Average a value per token over each response's tokens that carry loss; the result is [B]."""
        return self.sums(values_M) / self.num_tokens_B

    def spread(self, values_B: torch.Tensor) -> torch.Tensor:
        """Repeat a value per response at each of the response's tokens; the result is [M]."""
        return values_B.index_select(0, self.owners_M)

    @property
    def num_tokens_B(self) -> torch.Tensor:
        """Number of tokens that carry loss in each response, a whole number of at least 1."""
        return self.sums(torch.ones_like(self.mask_M))

    @property
    def logps_B(self) -> torch.Tensor:
        """Logprob of each response under the policy, nats."""
        return self.sums(self.logps_M)

    @property
    def reference_logps_B(self) -> torch.Tensor:
        """Logprob of each response under the reference, nats. It is added up in float64, because it is a constant."""
        return self.sums(self.reference_logps_M.double()).float()

    @property
    def log_ratios_B(self) -> torch.Tensor:
        """Log-ratio rho of each response: its logprob under the policy minus its logprob under the reference, nats."""
        return self.logps_B - self.reference_logps_B

    @property
    def nll_B(self) -> torch.Tensor:
        """Negative log-likelihood per token of each response, nats."""
        return -self.logps_B / self.num_tokens_B


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Base of the input records.

    The name of a field tells its content: `..._B` is a tensor with one number per example, and `is_..._B` and `has_..._B` are
    tensors with one bool per example.
    """

    statistics: dict[str, torch.Tensor] = field(default_factory=dict)
    """The scalars that `Objective.statistics` returned, summed over the whole batch on all ranks. It is empty for objectives
    without that method."""


@dataclass(frozen=True, kw_only=True)
class SequenceInputs(Inputs):
    """Input of objectives on demonstrations."""

    responses: Sequences


@dataclass(frozen=True, kw_only=True)
class PairInputs(Inputs):
    """Input of objectives on preference pairs."""

    chosen: Sequences
    rejected: Sequences
    beta_scale_B: torch.Tensor
    """Factor of each pair on the objective's beta."""

    @property
    def margins_B(self) -> torch.Tensor:
        """Log-ratio of the chosen response minus that of the rejected response, nats."""
        return self.chosen.log_ratios_B - self.rejected.log_ratios_B


@dataclass(frozen=True, kw_only=True)
class ScoredInputs(Inputs):
    """Input of objectives on scored responses."""

    responses: Sequences
    advantages_B: torch.Tensor
    scores_B: torch.Tensor
    """Scores of the responses, score units."""


@dataclass(frozen=True, kw_only=True)
class RatedInputs(Inputs):
    """Input of objectives on responses that are rated good or bad individually."""

    responses: Sequences
    is_desirable_B: torch.Tensor
    mismatched: Sequences
    """Responses to other prompts, each placed after one of this micro-batch's prompts. If the objective needs them, there is
    one for one example of every prompt of the batch, otherwise there are none. They are not aligned with the examples."""


@dataclass(frozen=True, kw_only=True)
class CritiqueInputs(Inputs):
    """Input of objectives on pairs of judged responses, each with its critique and the raw logit of the score token after
    it."""

    chosen: Sequences
    """The critiques of the chosen responses. Each includes the score token, and may consist of it alone."""
    rejected: Sequences
    """The critiques of the rejected responses, in the same form."""
    chosen_scores_B: torch.Tensor
    rejected_scores_B: torch.Tensor
    has_critiques_B: torch.Tensor
    """bool, `False` for a pair in which at least one response has no critique."""


@runtime_checkable
class Objective(Protocol):
    """A plug-in of group `objective`.

    An objective may also have a method `statistics(inputs) -> dict[str, torch.Tensor]`, for numbers that depend on the whole
    batch (a baseline, a mean to be subtracted). It returns scalars. The learner calls it in a first pass over the batch,
    without gradient, sums the scalars over all micro-batches and ranks, and gives the sums to the loss in `inputs.statistics`.
    The names of the scalars must not depend on the inputs, which may hold no example at all. The first pass costs a forward
    pass; it is not made for objectives without the method.
    """

    consumes: type
    """Record class of the examples, registered by `rlsys.records.example`."""

    @property
    def needs(self) -> frozenset[str]:
        """The data that the objective needs besides logprobs under the policy. It is any of `reference` (logprobs under the
        reference that the schedule's rule selects), `old` (logprobs recorded when the response was sampled), `values` (the
        logit of the token that the objective's field `value_token` names) and `mismatched` (responses to other prompts)."""

    @property
    def denominator(self) -> str:
        """The number that the summed loss is divided by: the batch's `examples`, or its `tokens` that carry loss."""

    def __call__(self, inputs: Any) -> LossOutput:
        """Loss and metrics, summed over the examples of the input."""
