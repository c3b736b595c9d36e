"""What objectives are given and what they return. B examples of a micro-batch; all tensors float32 unless said
otherwise.

An objective is a registered dataclass whose fields are its hyper-parameters. It is a pure function of log-
probabilities: no collectives, no randomness, no denominators. The learner divides the summed loss by the number of
examples (or tokens) of the whole batch, on all ranks, so that accumulation and ranks change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from rlsys.common.lazy import torch


@dataclass(frozen=True, kw_only=True)
class LossOutput:
    """Sums over the examples given."""

    loss: torch.Tensor
    """Scalar, with gradient."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Scalars, detached; summed over all micro-batches and ranks and divided by the number of examples."""


@dataclass(frozen=True, kw_only=True)
class SequenceInputs:
    """Demonstrations."""

    logps_B: torch.Tensor
    """Sum of the log-probabilities of the response tokens, nats."""
    num_tokens_B: torch.Tensor
    """int64, response tokens, at least 1."""


@dataclass(frozen=True, kw_only=True)
class PairInputs:
    """Preference pairs."""

    chosen_logps_B: torch.Tensor
    rejected_logps_B: torch.Tensor
    reference_chosen_logps_B: torch.Tensor
    """No gradient."""
    reference_rejected_logps_B: torch.Tensor
    chosen_num_tokens_B: torch.Tensor
    """int64."""
    rejected_num_tokens_B: torch.Tensor
    beta_scale_B: torch.Tensor
    """The pair's beta is the objective's times this."""

    @property
    def margins_B(self) -> torch.Tensor:
        """Log-ratio of the chosen answer minus that of the rejected one, nats."""
        chosen_B = self.chosen_logps_B - self.reference_chosen_logps_B
        return chosen_B - (self.rejected_logps_B - self.reference_rejected_logps_B)


@dataclass(frozen=True, kw_only=True)
class CritiqueInputs:
    """Pairs of judged answers, each with its critique and the raw logit of the score token after it."""

    chosen_scores_B: torch.Tensor
    rejected_scores_B: torch.Tensor
    chosen_logps_B: torch.Tensor
    """Sum over the critique's tokens and the score token, nats."""
    rejected_logps_B: torch.Tensor
    chosen_num_tokens_B: torch.Tensor
    """int64, at least 1 (the score token)."""
    rejected_num_tokens_B: torch.Tensor
    has_critiques_B: torch.Tensor
    """bool; `False` where one of the two has no critique."""


@runtime_checkable
class Objective(Protocol):
    """A plug-in of group `objective`."""

    consumes: type
    """Record class: `Demonstration`, `PreferencePair` or `CritiquePair`."""

    @property
    def denominator(self) -> str:
        """What the summed loss is divided by: the batch's `examples` or its `tokens`."""

    def __call__(self, inputs: Any) -> LossOutput:
        """Loss and metrics, summed over the examples given."""


def token_mean(logps_B: torch.Tensor, num_tokens_B: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood per token of each sequence, nats."""
    return -logps_B / num_tokens_B
