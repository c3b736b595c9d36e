"""Critique reward model: a judge that writes a critique and then scores.

The loss is language modelling of the critique and Bradley-Terry on the score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.common.lazy import functional
from rlsys.errors import ConfigError
from rlsys.objectives.inputs import CritiqueInputs, LossOutput
from rlsys.records import CritiquePair
from rlsys.registry import objective


@objective("critique_reward")
@dataclass(kw_only=True)
class CritiqueReward:
    """Critique-based reward model (MM-RLHF, arXiv:2502.10391, section 4.1), teacher-forced on the annotator's
    critiques.

    The loss of a pair is w_s * -log sigmoid(r_w - r_l) + c0 * (r_w + r_l)^2 + w_c * (nll_w + nll_l), where r is the raw logit
    of the score token after the critique. The centring term c0 * (r_w + r_l)^2 keeps the scores of different prompts near zero.
    Tied responses are not supported.

    The score token counts as the last token of its critique in nll. The ranking term pushes down the logit of a worse
    response. The nll term is the only one that keeps it from pushing so far that the judge would write another token instead of
    the score token.
    """

    w_s: float = 1.0
    w_c: float = 1.0
    c0: float = 0.01
    nll_per: str = "token"
    """`token`: a critique's nll is the mean over its tokens (released code); `critique`: the sum (the paper's formula)."""
    score_token: str = "<score>"
    """Special token that ends every critique; its raw logit is the score."""

    consumes: ClassVar[type] = CritiquePair
    needs: ClassVar[frozenset[str]] = frozenset()
    denominator: ClassVar[str] = "examples"

    def __post_init__(self) -> None:
        for name in ("w_s", "w_c", "c0"):
            if getattr(self, name) < 0:
                raise ConfigError(f"objective.{name} must be at least 0, got {getattr(self, name)}")
        if self.nll_per not in ("token", "critique"):
            raise ConfigError(f"objective.nll_per must be token or critique, got {self.nll_per!r}")

    def __call__(self, inputs: CritiqueInputs) -> LossOutput:
        """
        Args:
            inputs: scores, and logprobs of the critiques' tokens.

        Returns:
            Summed loss; metrics `accuracy` (ties count as wrong), `score_margin`, `score_chosen`, `score_rejected`,
            `critique_nll`.
        """
        chosen_B, rejected_B = inputs.chosen_scores_B, inputs.rejected_scores_B
        ranking_B = -functional.logsigmoid(chosen_B - rejected_B)
        centring_B = (chosen_B + rejected_B).square()
        nll_B = self._nll(inputs) * inputs.has_critiques_B
        loss_B = self.w_s * ranking_B + self.c0 * centring_B + self.w_c * nll_B
        margin_B = (chosen_B - rejected_B).detach()
        metrics = {
            "accuracy": (margin_B > 0).float().sum(),
            "score_margin": margin_B.sum(),
            "score_chosen": chosen_B.detach().sum(),
            "score_rejected": rejected_B.detach().sum(),
            "critique_nll": nll_B.detach().sum(),
        }
        return LossOutput(loss=loss_B.sum(), metrics=metrics)

    def _nll(self, inputs: CritiqueInputs):
        if self.nll_per == "critique":
            return -(inputs.chosen.logps_B + inputs.rejected.logps_B)
        return inputs.chosen.nll_B + inputs.rejected.nll_B
