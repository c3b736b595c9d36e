"""Preference optimisation on single responses that are good or bad each by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.common.lazy import torch
from rlsys.errors import ConfigError
from rlsys.objectives.inputs import LossOutput, RatedInputs
from rlsys.records import RatedResponse
from rlsys.registry import objective


@objective("kto")
@dataclass(kw_only=True)
class KTO:
    """KTO (arXiv:2402.01306). With rho a response's log-ratio and z the batch's baseline,

        desirable      desirable_weight   * (1 - sigmoid(beta (rho - z)))
        undesirable    undesirable_weight * (1 - sigmoid(beta (z - rho)))

    z = max(0, mean of rho over mismatched responses), a constant: responses of other prompts of the batch, one for each prompt,
    estimate KL(policy || reference). In a batch of a single prompt there is none, and z is 0. The authors choose the weights
    so that (desirable_weight * desirable examples) / (undesirable_weight * undesirable examples) is in [1, 4/3].
    """

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    consumes: ClassVar[type] = RatedResponse
    needs: ClassVar[frozenset[str]] = frozenset({"reference", "mismatched"})
    denominator: ClassVar[str] = "examples"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"objective.beta must be > 0, got {self.beta}")
        for name in ("desirable_weight", "undesirable_weight"):
            if getattr(self, name) < 0:
                raise ConfigError(f"objective.{name} must be at least 0, got {getattr(self, name)}")

    def statistics(self, inputs: RatedInputs) -> dict[str, torch.Tensor]:
        """Sum and number of the mismatched log-ratios."""
        ratios_K = inputs.mismatched.log_ratios_B
        return {"mismatched_sum": ratios_K.sum(), "mismatched_count": torch.ones_like(ratios_K).sum()}

    def __call__(self, inputs: RatedInputs) -> LossOutput:
        """
        Args:
            inputs: log-probabilities under policy and reference, with the batch's statistics.

        Returns:
            Summed loss; metrics `reward` (beta rho), `baseline` (beta z), `desirable` (share of the examples) and
            `implicit_accuracy` (share of the examples on their side of the baseline).
        """
        found = inputs.statistics
        baseline = (found["mismatched_sum"] / found["mismatched_count"].clamp(min=1)).clamp(min=0)
        ratios_B, good_B = inputs.responses.log_ratios_B, inputs.is_desirable_B
        lead_B = torch.where(good_B, ratios_B - baseline, baseline - ratios_B)
        weight_B = torch.where(good_B, self.desirable_weight, self.undesirable_weight)
        loss_B = weight_B * (1 - torch.sigmoid(self.beta * lead_B))
        known_B = ratios_B.detach()
        metrics = {
            "reward": self.beta * known_B.sum(),
            "baseline": (self.beta * baseline).expand_as(known_B).sum(),
            "desirable": good_B.float().sum(),
            "implicit_accuracy": (lead_B.detach() > 0).float().sum(),
        }
        return LossOutput(loss=loss_B.sum(), metrics=metrics)
