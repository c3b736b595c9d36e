"""Preference optimisation on single responses, each rated good or bad individually."""

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
    """KTO (arXiv:2402.01306). The loss of a response is

        desirable      desirable_weight   * (1 - sigmoid(beta (rho - z)))
        undesirable    undesirable_weight * (1 - sigmoid(beta (z - rho)))

    Here rho is the response's log-ratio, and z is the batch's baseline, a constant without gradient. It is z = max(0, mean of
    rho over mismatched responses). Mismatched responses belong to other prompts of the batch, one for each prompt, and estimate
    KL(policy || reference). A batch of a single prompt has none, and z is then 0. The authors choose the weights so that
    (desirable_weight * desirable examples) / (undesirable_weight * undesirable examples) is in [1, 4/3].
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
        """The sum of the log-ratios of mismatched responses, and their number."""
        ratios_K = inputs.mismatched.log_ratios_B
        return {"mismatched_sum": ratios_K.sum(), "mismatched_count": torch.ones_like(ratios_K).sum()}

    def __call__(self, inputs: RatedInputs) -> LossOutput:
        """
        Args:
            inputs: logprobs under policy and reference, with the batch's statistics.

        Returns:
            Summed loss; metrics `reward` (beta rho), `baseline` (beta z), `desirable` (share of desirable examples) and
            `implicit_accuracy` (share of examples whose log-ratio is on the right side of the baseline).
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
