"""Adds up the results of the steps of a stretch of training into its report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlsys.records import FitReport

if TYPE_CHECKING:  # learner.py imports torch and DeepSpeed, which a driver does not need
    from learners.learner import StepOutput

_NOT_METRICS = ("loss", "examples", "tokens")


class FitMetrics:
    """Sums over steps and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._loss = 0.0
        self._grad_norm = 0.0
        self._num_steps = 0
        self._seconds = 0.0

    def add(self, outputs: Sequence[StepOutput]) -> float:
        """Add one step.

        Args:
            outputs: the step's result on every rank.

        Returns:
            The step's loss.
        """
        step: dict[str, float] = {}
        for output in outputs:
            for name, value in output.sums.items():
                step[name] = step.get(name, 0.0) + value
        for name, value in step.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        loss = step["loss"] / outputs[0].denominator
        self._loss += loss * step["examples"]
        self._grad_norm += outputs[0].grad_norm
        self._num_steps += 1
        self._seconds += max(output.seconds for output in outputs)
        return loss

    def report(self, ends: Sequence[dict[str, float]]) -> FitReport:
        """The report of the stretch. If there was no step, its loss is 0 and it has no metrics.

        Args:
            ends: what `LearnerRank.end` returned on every rank.
        """
        if not self._num_steps:
            return FitReport(num_examples=0, num_steps=0, loss=0.0, metrics={}, seconds=0.0)
        examples = self._sums["examples"]
        metrics = {name: value / examples for name, value in self._sums.items() if name not in _NOT_METRICS}
        metrics["grad_norm"] = self._grad_norm / self._num_steps
        metrics["tokens"] = self._sums["tokens"]
        num_responses = sum(end["kl_responses"] for end in ends)
        for name in ("kl", "kl_initial"):
            if num_responses and f"{name}_sum" in ends[0]:
                metrics[name] = sum(end[f"{name}_sum"] for end in ends) / num_responses
        checked = sum(end["reference_checked"] for end in ends)
        metrics["reference_checked"] = checked
        seconds = self._seconds + max(end["seconds"] for end in ends)
        return FitReport(
            num_examples=int(examples),
            num_steps=self._num_steps,
            loss=self._loss / examples,
            metrics=metrics,
            seconds=seconds,
        )
