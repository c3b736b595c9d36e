"""Preference optimisation on logprobs per token, without a reference."""

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
    """SimPO (arXiv:2405.14734, eq. 6): the loss is -log sigmoid(beta (a_w - a_l) - gamma), where a is the mean logprob of a
    response's tokens and beta is multiplied by the pair's `beta_scale`. There is no reference, so no weights are kept and no
    forward pass is made for one.
    """

    beta: float = 2.0
    gamma: float = 1.0
    """Target margin: the chosen response's reward beta * a should exceed the rejected one's by it. The paper takes gamma / beta
    near 0.5."""

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
            inputs: logprobs of both responses' tokens under the policy.

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
