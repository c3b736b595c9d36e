"""A critique reward model as judge: it writes a critique and a score in the same pass (MM-RLHF, arXiv 2502.10391, section 3.2).

The reward head is folded into the language-model head as the row of a reserved token. The model writes its critique and then
that token; the token's raw logit at the position that emitted it is the score. The score therefore sees the whole critique.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.feedback.judge import Judge
from rlsys.records import Completion, Sampling

TEMPLATE = (
    "Judge an answer to a question about the picture: is it correct, clear and complete? "
    "Name what is right and what is wrong in it.\n"
    "[Question]\n{question}\n[Answer]\n{answer}\n[Evaluation]"
)


@registry.feedback("critique")
@dataclass(kw_only=True)
class CritiqueFeedback(Judge):
    """Reads a critique and its score token. A critique that does not reach the token, or whose logit is not finite, has
    failed.
    """

    raw_logits: ClassVar[tuple[str, ...]] = ("judge",)
    """Roles whose engine must be opened for raw logits."""

    template: str = TEMPLATE
    score_token: str = "<score>"
    """Reserved token of the critique reward model's vocabulary that ends a critique and carries the score."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.score_token:
            raise ConfigError(f"feedback.score_token must name a token, got {self.score_token!r}")

    def read(self, completion: Completion) -> float | None:
        """The raw logit of the last token, if that is the score token; otherwise `None`."""
        if completion.finish_reason != "stop_token" or completion.score_logits is None:
            return None
        return float(completion.score_logits[-1])

    def _sampling(self, seed: int) -> Sampling:
        return replace(super()._sampling(seed), stop_token=self.score_token, score_token=self.score_token)
