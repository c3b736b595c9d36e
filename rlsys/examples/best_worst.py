"""Pairs the best response of a prompt with the worst (RLHF Workflow, arXiv 2405.07863, section 3)."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys import registry
from rlsys.examples.pairing import PairOptions, distinct
from rlsys.records import PreferencePair, ScoredGroup


@registry.examples("best_worst")
@dataclass(kw_only=True)
class BestWorst(PairOptions):
    """Builds at most one pair per prompt. Among responses of equal score the one that appeared first is taken."""

    def __call__(self, scored: ScoredGroup) -> list[PreferencePair]:
        responses = distinct(scored)
        if len(responses) < 2:
            return []
        best = max(responses, key=lambda response: response[1])
        worst = min(responses, key=lambda response: response[1])
        pair = self.prefer(scored, best, worst)
        return [] if pair is None else [pair]
