"""The best answer against the worst (RLHF Workflow, arXiv 2405.07863, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys import registry
from rlsys.examples.pairing import distinct, prefer
from rlsys.records import PreferencePair, RoundPlan, ScoredGroup


@registry.pairs("best_worst")
@dataclass(kw_only=True)
class BestWorst:
    """Builds at most one pair per prompt; of equal scores the answer that appeared first is taken."""

    def __call__(self, scored: ScoredGroup, plan: RoundPlan) -> list[PreferencePair]:
        answers = distinct(scored)
        if len(answers) < 2:
            return []
        best = max(answers, key=lambda answer: answer[1])
        worst = min(answers, key=lambda answer: answer[1])
        pair = prefer(scored, best, worst, plan)
        return [] if pair is None else [pair]
