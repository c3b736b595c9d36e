"""Any instruction model compares responses pairwise; a round robin gives every response a score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

from rlsys import registry
from rlsys.asking.candidates import candidates, check_labels, mean, probabilities
from rlsys.asking.prompts import about, check_template, filled, question_of
from rlsys.contracts import Asking
from rlsys.errors import ConfigError
from rlsys.records import Ask, Generation, RolloutGroup, Sampling, Verdict

TEMPLATE = (
    "Compare two responses to the same question. Which one is more correct, clear and helpful?\n"
    "[Question]\n{question}\n[Response A]\n{a}\n[Response B]\n{b}\n"
    "Reply with A or with B."
)


@registry.feedback("pairwise_judge")
@dataclass(kw_only=True)
class PairwiseJudge:
    """The score of a response is the mean probability, in 0..1, that it is preferred to another response to its prompt.

    Every two responses are shown in both orders and the probabilities averaged, because judges are biased towards a position.
    The label's token is compared, not sampled (preference model of RLHF Workflow, arXiv 2405.07863, section 2.2). A comparison
    that lacks one of its orders is absent and counted as failed for both responses; a single response has no score.
    """

    roles: ClassVar[tuple[str, ...]] = ("judge",)

    template: str = TEMPLATE
    """Template of the judge's user turn, with `{question}`, `{a}` and `{b}`."""
    first: str = "A"
    """Label of the response that is shown first."""
    second: str = "B"
    tie: float = 0.0
    """A mean probability within this distance of one half counts as a tie and becomes one half."""

    def __post_init__(self) -> None:
        check_template("feedback.template", self.template, "question", "a", "b")
        check_labels("feedback.first and feedback.second", self.first, self.second)
        if not 0 <= self.tie < 0.5:
            raise ConfigError(f"feedback.tie must be in [0, 0.5), got {self.tie}")

    def judge(self, group: RolloutGroup) -> Asking[tuple[Verdict, ...]]:
        """One verdict per response, from all comparisons of the group in one wave."""
        pairs = list(combinations(range(len(group.responses)), 2))
        generations = yield self.comparisons(group)
        wins: list[list[float]] = [[] for _ in group.responses]
        failed = [0] * len(group.responses)
        for number, (one, other) in enumerate(pairs):
            preferred = self.preferred(generations[2 * number : 2 * number + 2])
            if preferred is None:
                failed[one] += 1
                failed[other] += 1
            else:
                wins[one].append(preferred)
                wins[other].append(1.0 - preferred)
        return tuple(map(_verdict, wins, failed))

    def comparisons(self, group: RolloutGroup) -> list[Ask]:
        """The requests about every two responses of a group; the two orders of a comparison follow each other."""
        pairs = combinations(range(len(group.responses)), 2)
        return [self._ask(group, *order) for one, other in pairs for order in ((one, other), (other, one))]

    def _ask(self, group: RolloutGroup, shown_first: int, shown_second: int) -> Ask:
        a, b = group.responses[shown_first].text, group.responses[shown_second].text
        text = filled(self.template, {"question": question_of(group.prompt), "a": a, "b": b})
        sampling = Sampling(temperature=0.0, max_tokens=1, candidate_tokens=candidates(self.first, self.second))
        return Ask(role="judge", prompt=about(group.prompt, "compare", text, a, b), sampling=sampling)

    def preferred(self, orders: Sequence[Generation]) -> float | None:
        """Probability that the response shown first in the first order is preferred; `None` if an order is missing."""
        straight, swapped = (probabilities(generation, self.first, self.second) for generation in orders)
        if straight is None or swapped is None:
            return None
        preferred = (float(straight[0]) + float(swapped[1])) / 2
        return 0.5 if abs(preferred - 0.5) <= self.tie else preferred


def _verdict(wins: list[float], failed: int) -> Verdict:
    score = mean(wins)
    return Verdict(scores={} if score is None else {Verdict.MAIN: score}, failed=failed)
