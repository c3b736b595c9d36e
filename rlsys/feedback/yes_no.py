"""The probability that a response is right, read from a single token of a judge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys import registry
from rlsys.asking.candidates import candidates, check_labels, probabilities
from rlsys.asking.prompts import check_template, judge_prompt
from rlsys.contracts import Asking
from rlsys.records import Ask, Generation, RolloutGroup, Sampling, Verdict

TEMPLATE = (
    "[Question]\n{question}\n[Answer]\n{answer}\n"
    "Is this answer correct, and does everything in it hold? Reply with yes or no."
)


@registry.feedback("yes_no")
@dataclass(kw_only=True)
class YesNo:
    """The score of a response is p(yes), in 0..1, given that the judge's reply begins with yes or with no.

    Any instruction model can be the judge, even one that is too small to write a number. Its reply is not sampled: only the
    values of the two words' tokens at the first position are compared (RLAIF-V, arXiv 2405.17220, section 2.2).
    """

    roles: ClassVar[tuple[str, ...]] = ("judge",)

    template: str = TEMPLATE
    """Template of the judge's user turn, with `{question}` and `{answer}`."""
    yes: str = "yes"
    """The word of agreement. It is also accepted capitalised, in capitals, and after a space."""
    no: str = "no"

    def __post_init__(self) -> None:
        check_template("feedback.template", self.template, "question", "answer")
        check_labels("feedback.yes and feedback.no", self.yes, self.no)

    def judge(self, group: RolloutGroup) -> Asking[tuple[Verdict, ...]]:
        """One verdict per response. It has failed if the reply was not delivered, or if the judge gives neither word a
        value.
        """
        sampling = Sampling(temperature=0.0, max_tokens=1, candidate_tokens=candidates(self.yes, self.no))
        generations = yield [
            Ask(role="judge", prompt=judge_prompt(self.template, group.prompt, response.text), sampling=sampling)
            for response in group.responses
        ]
        return tuple(map(self._verdict, generations))

    def _verdict(self, generation: Generation) -> Verdict:
        found = probabilities(generation, self.yes, self.no)
        return Verdict(failed=1) if found is None else Verdict(scores={Verdict.MAIN: float(found[0])})
