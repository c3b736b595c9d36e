"""Identity preference optimisation: the loss pulls the log-ratio margin to a fixed target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.errors import ConfigError
from rlsys.objectives.inputs import LossOutput, PairInputs
from rlsys.records import PreferencePair
from rlsys.registry import objective


@objective("ipo")
@dataclass(kw_only=True)
class IPO:
    """IPO (arXiv:2310.12036, eq. 17): the loss is (m - 1 / (2 beta))^2, where m is the pair's log-ratio margin.

    Log-ratios are averaged over each response's tokens, as in the paper, because a sum would demand the same total of a long
    response as of a short one. A pair's `beta_scale` is not used, because here a larger beta means a smaller target.
    """

    beta: float = 0.1
    """tau of the paper: the target is 1 / (2 beta) nats per token."""

    consumes: ClassVar[type] = PreferencePair
    needs: ClassVar[frozenset[str]] = frozenset({"reference"})
    denominator: ClassVar[str] = "examples"

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ConfigError(f"objective.beta must be > 0, got {self.beta}")

    def __call__(self, inputs: PairInputs) -> LossOutput:
        """
        Args:
            inputs: logprobs of both responses' tokens under policy and reference.

        Returns:
            Summed loss; metrics `implicit_accuracy`, `margin` (nats per token).
        """
        chosen_B = inputs.chosen.log_ratios_B / inputs.chosen.num_tokens_B
        margin_B = chosen_B - inputs.rejected.log_ratios_B / inputs.rejected.num_tokens_B
        loss_B = (margin_B - 1 / (2 * self.beta)).square()
        known_B = margin_B.detach()
        metrics = {"implicit_accuracy": (known_B > 0).float().sum(), "margin": known_B.sum()}
        return LossOutput(loss=loss_B.sum(), metrics=metrics)
