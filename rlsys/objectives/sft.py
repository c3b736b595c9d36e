"""Imitation of demonstrations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys.errors import ConfigError
from rlsys.objectives.inputs import LossOutput, SequenceInputs
from rlsys.records import Demonstration
from rlsys.registry import objective


@objective("sft")
@dataclass(kw_only=True)
class SFT:
    """Negative log-likelihood of the response tokens."""

    per: str = "tokens"
    """`tokens`: every token of the batch has the same weight; `examples`: every response has the same weight."""

    consumes: ClassVar[type] = Demonstration
    needs: ClassVar[frozenset[str]] = frozenset()

    def __post_init__(self) -> None:
        if self.per not in ("tokens", "examples"):
            raise ConfigError(f"objective.per must be tokens or examples, got {self.per!r}")

    @property
    def denominator(self) -> str:
        return self.per

    def __call__(self, inputs: SequenceInputs) -> LossOutput:
        """
        Args:
            inputs: logprobs of the responses' tokens.

        Returns:
            Summed loss; metric `nll` (per token, nats).
        """
        per_token_B = inputs.responses.nll_B
        loss_B = -inputs.responses.logps_B if self.per == "tokens" else per_token_B
        return LossOutput(loss=loss_B.sum(), metrics={"nll": per_token_B.detach().sum()})
