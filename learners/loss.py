"""Calls an objective for a rank of the learner: micro-batches go in, summed losses come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from learners.answers import Answers
from learners.deepspeed_backend import Engine
from learners.examples.kinds import kind_of
from learners.micro_batch import MicroBatch
from rlsys.errors import LearnerError


class Loss:
    """One objective on one rank."""

    def __init__(self, objective: Any, engine: Engine, forward: Callable[[MicroBatch], torch.Tensor]) -> None:
        """
        Args:
            objective: a plug-in of group `objective`.
            forward: returns the policy's output for a micro-batch ([2, L] or [3, L]), without gradient.
        """
        self._objective, self._engine, self._forward = objective, engine, forward

    @property
    def needs(self) -> frozenset[str]:
        """What the objective needs; see `rlsys.objectives.inputs.Objective`."""
        return self._objective.needs

    @property
    def uses_recorded(self) -> bool:
        """Whether the objective may receive recorded logprobs."""
        return bool(self.needs & {"reference", "old"})

    def statistics(
        self, batches: Sequence[MicroBatch], references: Sequence[torch.Tensor | None]
    ) -> dict[str, torch.Tensor]:
        """The objective's statistics of the whole batch, summed over all micro-batches and ranks.

        All ranks must call this together. For an objective without statistics the result is empty, and no forward pass is made.
        """
        if not hasattr(self._objective, "statistics"):
            return {}
        sums: dict[str, float] = {}
        for batch, reference in zip(batches, references, strict=True):
            found = self._objective.statistics(self._inputs(batch, self._forward(batch), reference))
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + float(value)
        totals = self._engine.reduce(list(sums.values()), "sum")
        return {name: torch.tensor(total, device=self._engine.device) for name, total in zip(sums, totals, strict=True)}

    def __call__(
        self,
        batch: MicroBatch,
        output_RL: torch.Tensor,
        reference: torch.Tensor | None,
        statistics: dict[str, torch.Tensor],
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss summed over a micro-batch's examples, and a mapping with this loss and the objective's metrics as numbers.

        Args:
            batch: a micro-batch with at least one example.
            output_RL: the policy's output, with gradient.
            reference: [L] logprobs under the reference, if the objective needs them.

        Raises:
            LearnerError: the loss is not finite.
        """
        inputs = replace(self._inputs(batch, output_RL, reference), statistics=statistics)
        output = self._objective(inputs)
        found = {"loss": float(output.loss.detach()), **{name: float(v) for name, v in output.metrics.items()}}
        if not np.isfinite(found["loss"]):
            raise LearnerError(f"the loss of {len(batch.examples)} examples is {found['loss']}: {found}")
        return output.loss, found

    def _inputs(self, batch: MicroBatch, output_RL: torch.Tensor, reference: torch.Tensor | None) -> Any:
        """The input record of the objective."""
        answers = Answers(batch, output_RL, reference_L=reference, with_old="old" in self.needs)
        return kind_of(self._objective.consumes).inputs(batch, answers)
