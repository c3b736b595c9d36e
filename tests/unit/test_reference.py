"""Whose recorded log-probabilities are the reference, and which weights are kept, where refusals use up versions."""

import numpy as np
import pytest
import torch

from learners.config import LearnerConfig
from learners.plan import FitPlan
from learners.reference import Reference
from learners.trees import Branch
from tests.fakes import make_plan, sampled_response


class OneWeight:
    """An engine with one number for weights."""

    def __init__(self):
        self.weight = torch.zeros(1)

    def local_weights(self):
        return {"w": self.weight}


NEEDS = frozenset({"reference"})


def branch(*, round, version):
    """A response as a version sampled it for a round; `None` is one that no engine sampled."""
    rollout = None if version is None else sampled_response("a", policy_version=version)
    return Branch(token_ids=np.int32([97]), rollout=rollout, round=round)


def plan(round, version, **changes):
    return FitPlan.of_round(make_plan(round=round, **changes), policy_version=version, seed=0)


def at_hand(reference):
    return {version: weights and float(weights["w"]) for version, weights in reference.weights_of_versions().items()}


@pytest.fixture
def reference():
    return Reference(OneWeight(), LearnerConfig(), lambda batch: None)


def test_a_rounds_own_answers_are_recorded_however_many_versions_ago_they_were_sampled(reference):
    """Lag 2; rounds 1 and 2 are refused: round 3 starts from version 5 and was answered by version 1."""
    for round, start, sampler in ((0, 0, 0), (1, 1, 0), (2, 3, 0), (3, 5, 1), (4, 6, 3), (5, 7, 5)):
        reference.begin(plan(round, start, lag=2), NEEDS)
        assert reference.is_recorded(branch(round=round, version=sampler)), round


def test_answers_of_earlier_rounds_are_compared_with_the_weights_at_the_start(reference):
    reference.begin(plan(1, 1, brings_others=True), NEEDS)
    assert not reference.is_recorded(branch(round=0, version=0))
    assert reference.is_recorded(branch(round=1, version=1))
    reference.begin(plan(2, 2, brings_others=True, lag=1), NEEDS)
    assert not reference.is_recorded(branch(round=0, version=0))
    assert reference.is_recorded(branch(round=2, version=1))


def test_outside_of_rounds_the_answers_of_the_weights_at_the_start_are_recorded(reference):
    reference.begin(FitPlan(lr=0.1, policy_version=1), NEEDS)
    assert reference.is_recorded(branch(round=0, version=1)) and not reference.is_recorded(branch(round=0, version=0))
    assert not reference.is_recorded(branch(round=None, version=None))


def test_a_lag_that_is_longer_than_the_run_so_far_drops_nothing(reference):
    for round in range(5):
        reference.begin(plan(round, round, lag=4), NEEDS)
        reference.after_step()
        assert sorted(reference.weights_of_versions()) == list(range(round + 1))


def test_the_weights_of_as_many_starts_are_kept_as_the_lag_has_rounds_also_over_refusals(reference):
    found = []
    for round, start in enumerate((0, 1, 3, 5, 6)):
        reference._engine.weight.fill_(start / 10)
        reference.begin(plan(round, start, lag=2), NEEDS)
        reference.after_step()
        found.append(sorted(reference.weights_of_versions()))
        if round in (1, 2):  # refused: the learner goes back to a checkpoint that knows nothing of this round
            reference.restore({})
    assert found == [[0], [0, 1], [0, 1, 3], [1, 3, 5], [3, 5, 6]]
    assert at_hand(reference) == {3: pytest.approx(0.3), 5: pytest.approx(0.5), 6: pytest.approx(0.6)}
    reference.begin(plan(5, 7), NEEDS)
    assert sorted(reference.kept()) == []
