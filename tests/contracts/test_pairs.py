"""What every pair builder in the registry promises, on many random groups."""

from dataclasses import replace

import numpy as np
import pytest

from rlsys import registry
from rlsys.contracts import ExampleBuilder
from rlsys.records import Critique, Prompt, Rollout, RolloutGroup, RoundPlan, ScoredGroup, Turn, Verdict

registry.discover()
PLAN = RoundPlan(
    round=1, num_prompts=1, num_candidates=6, temperatures=(1.0,), top_p=1.0, max_tokens=32, epochs=1, lr=1e-5,
    beta=0.1, scale_w=0.5, scale_k=0.5, pairs="", min_margin=0.5, max_pairs_per_prompt=4, reference="previous",
    data="current", lag=0,
)  # fmt: skip


def random_group(seed: int) -> ScoredGroup:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 7))
    rollouts = tuple(
        Rollout(
            text=f"answer {i}", token_ids=np.array([i], np.int32), logprobs=np.array([-1.0], np.float32), count=1,
            finish_reason="stop", temperature=1.0, seed=i,
        )
        for i in range(count)
    )  # fmt: skip
    verdicts = tuple(
        Verdict(critiques=(Critique(text="", score=float(random.integers(0, 4))),))
        if random.random() > 0.2
        else Verdict(critiques=(), failed=1)
        for _ in range(count)
    )
    group = RolloutGroup(
        prompt=Prompt(id=f"p{seed}", turns=(Turn(role="user", text="?"),)), round=1, index=seed, policy_version=1,
        prompt_token_ids=np.array([5], np.int32), rollouts=rollouts,
    )  # fmt: skip
    return ScoredGroup(group=group, verdicts=verdicts)


@pytest.mark.parametrize("name", sorted(registry.pairs))
def test_pair_builder(name):
    build = registry.pairs.make(name)
    assert isinstance(build, ExampleBuilder)
    total = 0
    for group in map(random_group, range(60)):
        pairs = build(group, PLAN)
        scores = {rollout.text: score for rollout, score in group.scored}
        assert pairs == build(group, PLAN), "the same group gives the same pairs"
        assert len(pairs) <= PLAN.max_pairs_per_prompt
        for pair in pairs:
            assert pair.margin == scores[pair.chosen.text] - scores[pair.rejected.text] >= 0.5
            assert (pair.chosen_score, pair.rejected_score) == (scores[pair.chosen.text], scores[pair.rejected.text])
            assert 1.0 < pair.beta_scale < 1.5
            assert (pair.prompt, pair.round, pair.policy_version) == (group.group.prompt, 1, 1)
        plain = build(group, replace(PLAN, scale_w=0.0))
        assert all(pair.beta_scale == 1.0 for pair in plain)
        total += len(pairs)
    assert total > 20
