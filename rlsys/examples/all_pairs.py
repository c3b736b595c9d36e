"""Every pair of answers of different score (MM-RLHF, arXiv 2502.10391, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from rlsys import registry
from rlsys.examples.pairing import distinct, prefer
from rlsys.records import PreferencePair, RoundPlan, ScoredGroup
from rlsys.seeding import generator


@registry.pairs("all_pairs")
@dataclass(kw_only=True)
class AllPairs:
    """Builds each pair whose margin is positive and at least `plan.min_margin`.

    Where there are more than `plan.max_pairs_per_prompt`, a uniform choice without replacement stays, drawn from a seed
    that the run's (by the first answer's), round and prompt decide: the margins keep their spread (the largest alone
    would be easy pairs about the same few answers), and a resumed run draws the same pairs. The order is that of the
    answers.
    """

    def __call__(self, scored: ScoredGroup, plan: RoundPlan) -> list[PreferencePair]:
        candidates = (prefer(scored, one, other, plan) for one, other in combinations(distinct(scored), 2))
        pairs = [pair for pair in candidates if pair is not None]
        limit = plan.max_pairs_per_prompt
        if limit == 0 or len(pairs) <= limit:
            return pairs
        random = generator(scored.group.rollouts[0].seed, "all_pairs", scored.group.round, scored.group.prompt.id)
        kept = sorted(random.choice(len(pairs), size=limit, replace=False))
        return [pairs[position] for position in kept]
