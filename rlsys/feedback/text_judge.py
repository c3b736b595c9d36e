"""Any instruction model as a judge; the score is a number in its text."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.feedback.judge import Judge
from rlsys.records import Completion

TEMPLATE = (
    "You see a picture, a question about it and an answer. Judge whether the answer is correct, clear and complete: "
    "name what is right and what is wrong in it, then end with a line of the form `Score: N`, "
    "N from 1 (useless) to 10 (perfect).\n"
    "[Question]\n{question}\n[Answer]\n{answer}\n[Evaluation]"
)


@registry.feedback("text_judge")
@dataclass(kw_only=True)
class TextJudge(Judge):
    """Reads the last match of `pattern`. A judgement has failed, and is counted, if it has no match, no number, a number
    outside `low .. high`, or was cut at the token limit (its number may then be incomplete, or not the final one).
    """

    template: str = TEMPLATE
    pattern: str = r"(?i)score(?:\s+(?:is|of))?[\s:=*_]*(-?\d+(?:\.\d+)?)"
    """Regular expression with one group, which holds the number."""
    low: float | None = 1.0
    """Smallest accepted score, the lowest that the template allows; `None` is no bound."""
    high: float | None = 10.0
    """Largest accepted score, the highest that the template allows; `None` is no bound."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            groups = re.compile(self.pattern).groups
        except re.error as error:
            raise ConfigError(f"feedback.pattern is no regular expression ({error}): {self.pattern!r}") from error
        if groups != 1:
            raise ConfigError(f"feedback.pattern must have exactly one group, has {groups}: {self.pattern!r}")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ConfigError(f"feedback.low must be below feedback.high, got {self.low} and {self.high}")

    def read(self, completion: Completion) -> float | None:
        """The number in the judge's text."""
        found = re.findall(self.pattern, completion.text)
        if completion.finish_reason == "length" or not found:
            return None
        try:
            score = float(found[-1])
        except (
            ValueError
        ):  # the pattern's group may match text that is not a number; the judgement then counts as failed
            return None
        return score if self._believable(score) else None

    def _believable(self, score: float) -> bool:
        above = self.low is None or score >= self.low
        below = self.high is None or score <= self.high
        return math.isfinite(score) and above and below
