"""Preference optimisation on log-probabilities per token, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.common.lazy import functional
from rlsys.errors import ConfigError
from rlsys.objectives.inputs import LossOutput, PairInputs
from rlsys.records import PreferencePair
from rlsys.registry import objective


@objective("simpo")
@dataclass(kw_only=True)
class SimPO:
    """SimPO (arXiv:2405.14734, eq. 6): -log sigmoid(beta (a_w - a_l) - gamma), a the mean log-probability of an answer's
    tokens. There is no reference: no weights are kept and no pass is made for one. beta is times the pair's `beta_scale`.
    """

    beta: float = 2.0
    gamma: float = 1.0
    """Margin by which the chosen answer's reward beta * a is to be the larger one; the paper takes gamma / beta near 0.5."""

    consumes: ClassVar[type] = PreferencePair
    needs: ClassVar[frozenset[str]] = frozenset()
    denominator: ClassVar[str] = "examples"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"objective.beta must be > 0, got {self.beta}")
        if self.gamma < 0:
            raise ConfigError(f"objective.gamma must be at least 0, got {self.gamma}")

    def __call__(self, inputs: PairInputs) -> LossOutput:
        """
        Args:
            inputs: log-probabilities of both answers' tokens under the policy.

        Returns:
            Summed loss; metrics `implicit_accuracy`, `reward_margin`, `nll_chosen`.
        """
        nll_B = inputs.chosen.nll_B
        margin_B = self.beta * inputs.beta_scale_B * (inputs.rejected.nll_B - nll_B)
        loss_B = -functional.logsigmoid(margin_B - self.gamma)
        known_B = margin_B.detach()
        metrics = {
            "implicit_accuracy": (known_B > 0).float().sum(),
            "reward_margin": known_B.sum(),
            "nll_chosen": nll_B.detach().sum(),
        }
        return LossOutput(loss=loss_B.sum(), metrics=metrics)
