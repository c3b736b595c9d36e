"""Builds every pair of responses with different scores (MM-RLHF, arXiv 2502.10391, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.examples.pairing import PairOptions, distinct
from rlsys.records import PreferencePair, ScoredGroup
from rlsys.seeding import generator


@registry.examples("all_pairs")
@dataclass(kw_only=True)
class AllPairs(PairOptions):
    """Builds each pair whose margin is positive and at least `min_margin`, in the order of the responses.

    If a prompt has more than `max_per_prompt` pairs, a uniform sample without replacement is kept. So the margins keep their
    spread; the pairs of largest margin alone would be easy pairs about the same few responses. The sample is drawn from a seed
    that depends on the run's seed (through the first response's seed), the round and the prompt, so a resumed run draws the
    same pairs.
    """

    max_per_prompt: int = 0
    """Largest number of pairs of one prompt; 0 is no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_per_prompt < 0:
            raise ConfigError(f"examples.max_per_prompt must be at least 0, got {self.max_per_prompt}")

    def __call__(self, scored: ScoredGroup) -> list[PreferencePair]:
        candidates = (self.prefer(scored, one, other) for one, other in combinations(distinct(scored), 2))
        pairs = [pair for pair in candidates if pair is not None]
        if self.max_per_prompt == 0 or len(pairs) <= self.max_per_prompt:
            return pairs
        group = scored.group
        random = generator(group.responses[0].sampled.seed, "all_pairs", group.round, group.prompt.id)
        kept = sorted(random.choice(len(pairs), size=self.max_per_prompt, replace=False))
        return [pairs[position] for position in kept]
