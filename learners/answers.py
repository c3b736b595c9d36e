"""The responses of a micro-batch, in the form in which an objective receives them.

Letters in shapes: L tokens of all responses of the micro-batch, A responses of the micro-batch, B examples.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from learners.micro_batch import MicroBatch
from learners.tokens import RefusedRecord
from rlsys.objectives.inputs import Sequences


def recorded_logprobs(batch: MicroBatch) -> torch.Tensor:
    """float32 [L] logprobs that were recorded when the responses were sampled.

    The tokens of a response that no engine sampled have nan.
    """
    parts = [
        np.full(len(answer.token_ids), np.nan, np.float32)
        if answer.rollout is None
        else answer.rollout.sampled.logprobs
        for answer in batch.answers
    ]
    return torch.from_numpy(np.concatenate(parts))


class Answers:
    """The responses of one micro-batch, and the selection of those that belong to its examples."""

    def __init__(
        self,
        batch: MicroBatch,
        output_RL: torch.Tensor,
        *,
        reference_L: torch.Tensor | None = None,
        with_old: bool = False,
    ) -> None:
        """
        Args:
            output_RL: the policy's output. Row 0 has the logprobs of the tokens, row 1 their raw logits, and row 2, if the
                policy was asked for them, the values.
            reference_L: logprobs under the reference, if the objective needs a reference.
            with_old: whether the objective needs the recorded logprobs.

        Raises:
            RefusedRecord: `with_old` is set, and a response of an example has no recorded logprobs.
        """
        self._batch, self._device = batch, output_RL.device
        self._logps_L, self._logits_L = output_RL[0], output_RL[1]
        self._values_L = output_RL[2] if len(output_RL) > 2 else None
        self._mask_L = batch.loss_mask.to(self._device)
        self._old_L = self._constants(self._recorded()) if with_old else None
        self._reference_L = None if reference_L is None else self._constants(reference_L)

    def at(self, place: int) -> Sequences:
        """The response at position `place` of every example, in the order of the examples.

        An example that has no response at that position is left out.
        """
        numbers = self._numbers(place)
        starts, ends = self._batch.starts, self._batch.last_token.numpy() + 1
        tokens = [np.arange(starts[number], ends[number]) for number in numbers]
        owners = np.repeat(np.arange(len(numbers)), [len(own) for own in tokens])
        tokens_M = self._index(np.concatenate(tokens) if tokens else [])

        def chosen(values_L: torch.Tensor | None) -> torch.Tensor | None:
            return None if values_L is None else values_L.index_select(0, tokens_M)

        return Sequences(
            size=len(numbers),
            owners_M=self._index(owners),
            mask_M=chosen(self._mask_L),
            logps_M=chosen(self._logps_L),
            reference_logps_M=chosen(self._reference_L),
            old_logps_M=chosen(self._old_L),
            values_M=chosen(self._values_L),
        )

    def last_logits(self, place: int) -> torch.Tensor:
        """float32 [B], the raw logit of the last token of each response that `at(place)` returns."""
        last = self._batch.last_token.numpy()[self._numbers(place)]
        return self._logits_L.index_select(0, self._index(last))

    def row(self, numbers: Sequence[float]) -> torch.Tensor:
        """float32 [B] tensor on this device from one number per example."""
        return torch.tensor(numbers, dtype=torch.float32, device=self._device)

    def truths(self, truths: Sequence[bool]) -> torch.Tensor:
        """bool [B] tensor on this device from one truth value per example."""
        return torch.tensor(truths, dtype=torch.bool, device=self._device)

    def _numbers(self, place: int) -> list[int]:
        return [answers[place] for _, answers in self._batch.examples if len(answers) > place]

    def _index(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(numbers, dtype=np.int64)).to(self._device)

    def _constants(self, logps_L: torch.Tensor) -> torch.Tensor:
        """Logprobs of constants (reference, old) on this device.

        A token without loss gets the policy's own logprob, so that its ratio is 1 and cannot overflow.
        """
        return torch.where(self._mask_L > 0, logps_L.to(self._device), self._logps_L.detach())

    def _recorded(self) -> torch.Tensor:
        recorded_L = recorded_logprobs(self._batch)
        is_unknown_A = recorded_L.isnan().numpy()[self._batch.starts]
        for record, answers in self._batch.examples:
            if is_unknown_A[list(answers)].any():
                raise RefusedRecord(
                    f"prompt {record.prompt.id!r}: a response that no engine of the run sampled has no recorded "
                    "log-probabilities, which the objective needs"
                )
        return recorded_L
