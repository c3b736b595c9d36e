"""What each class of record becomes for its objective, once the log-probabilities of its answers are known.

B examples, A answers of a micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from learners.micro_batch import MicroBatch
from rlsys.objectives.inputs import CritiqueInputs, PairInputs, SequenceInputs
from rlsys.records import CritiquePair, Demonstration, PreferencePair


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A micro-batch's answers under the policy."""

    logps_A: torch.Tensor
    """Sums over each answer's tokens, nats."""
    num_tokens_A: torch.Tensor
    last_logits_A: torch.Tensor
    """Raw logit of each answer's last token."""
    reference_logps_A: torch.Tensor | None
    """`None` for objectives without a reference."""


def answer_sums(batch: MicroBatch, values_L: torch.Tensor) -> torch.Tensor:
    """Sum per answer of a value per answer token.

    Args:
        values_L: [L].

    Returns:
        [A].
    """
    owners = batch.answer_of_token.to(values_L.device)
    return values_L.new_zeros(batch.num_answers).index_add(0, owners, values_L)


def score(
    batch: MicroBatch, logps_L: torch.Tensor, logits_L: torch.Tensor, reference_logps_A: torch.Tensor | None
) -> Scored:
    """Per-answer values out of per-token ones."""
    return Scored(
        logps_A=answer_sums(batch, logps_L),
        num_tokens_A=answer_sums(batch, torch.ones_like(batch.targets)).to(logps_L.device),
        last_logits_A=logits_L.index_select(0, batch.last_token.to(logits_L.device)),
        reference_logps_A=reference_logps_A,
    )


def needs_reference(consumes: type) -> bool:
    """Whether objectives on these records compare with a reference."""
    return consumes is PreferencePair


def objective_inputs(consumes: type, batch: MicroBatch, scored: Scored) -> Any:
    """The input record of objectives that consume a class."""
    return _INPUTS[consumes](batch, scored)


def _column(batch: MicroBatch, place: int, device: torch.device) -> torch.Tensor:
    return torch.tensor([answers[place] for _, answers in batch.examples], dtype=torch.int64, device=device)


def _sequence_inputs(batch: MicroBatch, scored: Scored) -> SequenceInputs:
    answers_B = _column(batch, 0, scored.logps_A.device)
    return SequenceInputs(logps_B=scored.logps_A[answers_B], num_tokens_B=scored.num_tokens_A[answers_B])


def _pair_inputs(batch: MicroBatch, scored: Scored) -> PairInputs:
    device = scored.logps_A.device
    chosen_B, rejected_B = _column(batch, 0, device), _column(batch, 1, device)
    return PairInputs(
        chosen_logps_B=scored.logps_A[chosen_B],
        rejected_logps_B=scored.logps_A[rejected_B],
        reference_chosen_logps_B=scored.reference_logps_A[chosen_B],
        reference_rejected_logps_B=scored.reference_logps_A[rejected_B],
        chosen_num_tokens_B=scored.num_tokens_A[chosen_B],
        rejected_num_tokens_B=scored.num_tokens_A[rejected_B],
        beta_scale_B=torch.tensor([pair.beta_scale for pair, _ in batch.examples], device=device),
    )


def _critique_inputs(batch: MicroBatch, scored: Scored) -> CritiqueInputs:
    device = scored.logps_A.device
    chosen_B, rejected_B = _column(batch, 0, device), _column(batch, 1, device)
    has_B = [bool(pair.chosen_critique and pair.rejected_critique) for pair, _ in batch.examples]
    return CritiqueInputs(
        chosen_scores_B=scored.last_logits_A[chosen_B],
        rejected_scores_B=scored.last_logits_A[rejected_B],
        chosen_logps_B=scored.logps_A[chosen_B],
        rejected_logps_B=scored.logps_A[rejected_B],
        chosen_num_tokens_B=scored.num_tokens_A[chosen_B],
        rejected_num_tokens_B=scored.num_tokens_A[rejected_B],
        has_critiques_B=torch.tensor(has_B, device=device),
    )


_INPUTS = {Demonstration: _sequence_inputs, PreferencePair: _pair_inputs, CritiquePair: _critique_inputs}
