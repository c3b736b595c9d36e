"""Policy gradients with clipped ratios, and with the divergence from a reference as a term of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.common.lazy import torch
from rlsys.errors import ConfigError
from rlsys.objectives.inputs import LossOutput, ScoredInputs
from rlsys.records import ScoredResponse
from rlsys.registry import objective


@objective("grpo")
@dataclass(kw_only=True)
class GRPO:
    """GRPO (DeepSeekMath, arXiv:2402.03300, eq. 3) on advantages that come with the examples. The loss of a token is

        max(-r A, -clip(r, 1 - clip, 1 + clip) A) + beta * (exp(-u) - 1 + u)

    Here r is the ratio of the token's probability to the probability at which it was sampled, A is the response's advantage,
    and u is the log-ratio to the reference. The second term is an unbiased estimate of the divergence that is never negative
    (k3). The loss of a response is the mean over its tokens, and the loss of the batch is the mean over its responses. `clip`
    is PPO's epsilon (arXiv:1707.06347, eq. 7).
    """

    clip: float = 0.2
    beta: float = 0.04
    """Weight of the divergence from the reference; with 0 no reference is needed."""

    consumes: ClassVar[type] = ScoredResponse
    denominator: ClassVar[str] = "examples"

    def __post_init__(self) -> None:
        if not 0 < self.clip < 1:
            raise ConfigError(f"objective.clip must be in (0, 1), got {self.clip}")
        if self.beta < 0:
            raise ConfigError(f"objective.beta must be at least 0, got {self.beta}")

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"old", "reference"} if self.beta else {"old"})

    def __call__(self, inputs: ScoredInputs) -> LossOutput:
        """
        Args:
            inputs: logprobs of the tokens under the policy, those recorded at sampling and, unless beta is 0, those under the
                reference.

        Returns:
            Summed loss; metrics `score`, `clipped` (share of a response's tokens whose advantage gives no gradient because the
            ratio is clipped) and `kl_reference` (k3 estimate, nats per token).
        """
        tokens = inputs.responses
        advantages_M = tokens.spread(inputs.advantages_B)
        ratios_M = torch.exp(tokens.logps_M - tokens.old_logps_M)
        free_M = -ratios_M * advantages_M
        clipped_M = -ratios_M.clamp(1 - self.clip, 1 + self.clip) * advantages_M
        loss_B = tokens.means(torch.maximum(free_M, clipped_M))
        metrics = {
            "score": inputs.scores_B.sum(),
            "clipped": tokens.means((clipped_M > free_M).detach().float()).sum(),
        }
        if self.beta:
            u_M = tokens.logps_M - tokens.reference_logps_M
            kl_B = tokens.means(torch.exp(-u_M) - 1 + u_M)
            loss_B = loss_B + self.beta * kl_B
            metrics["kl_reference"] = kl_B.detach().sum()
        return LossOutput(loss=loss_B.sum(), metrics=metrics)
