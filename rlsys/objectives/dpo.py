"""Direct preference optimisation in which every pair has its own beta."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.common.lazy import functional, torch
from rlsys.errors import ConfigError
from rlsys.objectives.inputs import LossOutput, PairInputs
from rlsys.records import PreferencePair
from rlsys.registry import objective


@objective("dpo")
@dataclass(kw_only=True)
class DPO:
    """DPO (arXiv:2305.18290, eq. 7) with per-pair beta (MM-RLHF, arXiv:2502.10391, section 4.2) and an optional SFT
    term.

    The loss of a pair is -(1 - s) log sigmoid(beta m) - s log sigmoid(-beta m), where s is `label_smoothing` and m the pair's
    log-ratio margin. The SFT term is added to it.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    """Assumed share of pairs that are labelled the wrong way round, in [0, 0.5)."""
    lambda_sft: float = 0.0
    """Weight of the SFT term, which is the chosen response's negative log-likelihood per token."""

    consumes: ClassVar[type] = PreferencePair
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    denominator: ClassVar[str] = "examples"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"objective.beta must be > 0, got {self.beta}")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(f"objective.label_smoothing must be in [0, 0.5), got {self.label_smoothing}")
        if self.lambda_sft < 0:
            raise ConfigError(f"objective.lambda_sft must be at least 0, got {self.lambda_sft}")

    def __call__(self, inputs: PairInputs) -> LossOutput:
        """
        Args:
            inputs: logprobs of both responses' tokens under policy and reference.

        Returns:
            Summed loss; metrics `implicit_accuracy`, `reward_chosen`, `reward_rejected`, `reward_margin`, `nll_chosen`.
        """
        beta_B = self.beta * inputs.beta_scale_B
        reward_margin_B = beta_B * inputs.margins_B
        loss_B = -(1 - self.label_smoothing) * functional.logsigmoid(reward_margin_B)
        loss_B = loss_B - self.label_smoothing * functional.logsigmoid(-reward_margin_B)
        nll_B = inputs.chosen.nll_B
        loss_B = loss_B + self.lambda_sft * nll_B
        with torch.no_grad():
            metrics = self._metrics(inputs, reward_margin_B, nll_B)
        return LossOutput(loss=loss_B.sum(), metrics=metrics)

    def _metrics(
        self, inputs: PairInputs, reward_margin_B: torch.Tensor, nll_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        beta_B = self.beta * inputs.beta_scale_B
        return {
            "implicit_accuracy": (reward_margin_B > 0).float().sum(),
            "reward_chosen": (beta_B * inputs.chosen.log_ratios_B).sum(),
            "reward_rejected": (beta_B * inputs.rejected.log_ratios_B).sum(),
            "reward_margin": reward_margin_B.sum(),
            "nll_chosen": nll_B.sum(),
        }
