"""What every pair builder in the registry promises, on many random groups."""

from dataclasses import replace

import numpy as np
import pytest

from rlsys import registry
from rlsys.contracts import ExampleBuilder
from rlsys.records import PreferencePair, Prompt, RolloutGroup, ScoredGroup, Turn
from tests.fakes import make_verdict, sampled_response

registry.discover()


def random_group(seed: int) -> ScoredGroup:
    random = np.random.default_rng(seed)
    count = int(random.integers(0, 7))
    rollouts = tuple(
        sampled_response(
            text=f"answer {i}", token_ids=np.array([i], np.int32), logprobs=np.array([-1.0], np.float32),
            policy_version=1, seed=i,
        )
        for i in range(count)
    )  # fmt: skip
    verdicts = tuple(
        make_verdict(float(random.integers(0, 4))) if random.random() > 0.2 else make_verdict(None)
        for _ in range(count)
    )
    group = RolloutGroup(
        prompt=Prompt(id=f"p{seed}", turns=(Turn(role="user", text="?"),)), round=1, index=seed, policy_version=1,
        prompt_token_ids=np.array([5], np.int32), responses=rollouts,
    )  # fmt: skip
    return ScoredGroup(group=group, verdicts=verdicts)


PAIR_BUILDERS = sorted(name for name, kind in registry.examples.items() if kind.produces is PreferencePair)


@pytest.mark.parametrize("name", PAIR_BUILDERS)
def test_pair_builder(name):
    build = registry.examples.make(name, min_margin=0.5)
    assert isinstance(build, ExampleBuilder)
    total = 0
    for group in map(random_group, range(60)):
        pairs = build(group)
        scores = {rollout.text: score for rollout, score in group.scored}
        assert pairs == build(group), "the same group gives the same pairs"
        assert len(pairs) <= 21, "seven responses make no more pairs"
        for pair in pairs:
            assert pair.margin == scores[pair.chosen.text] - scores[pair.rejected.text] >= 0.5
            assert (pair.chosen_score, pair.rejected_score) == (scores[pair.chosen.text], scores[pair.rejected.text])
            assert 1.0 < pair.beta_scale < 1.5
            assert (pair.prompt, pair.round, pair.chosen.sampled.policy_version) == (group.group.prompt, 1, 1)
        plain = replace(build, scale_w=0.0)(group)
        assert all(pair.beta_scale == 1.0 for pair in plain)
        total += len(pairs)
    assert total > 20
