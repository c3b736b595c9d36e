"""The KL estimate, held against the divergence of distributions over one token."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from learners.sample import ResponseSample, k3_sum, num_candidates
from learners.trees import Branch, Tree
from tests.fakes import sampled_response


def batch(*answers, mask=None):
    """Of (sampler's probabilities of the tokens, count)."""
    answers = [
        Branch(
            token_ids=np.zeros(len(probabilities), np.int32),
            rollout=sampled_response("", logprobs=np.log(np.float32(probabilities)), count=count),
        )
        for probabilities, count in answers
    ]
    num_tokens = sum(len(answer.token_ids) for answer in answers)
    return SimpleNamespace(answers=answers, loss_mask=torch.tensor(mask or [1.0] * num_tokens))


def policy(*probabilities):
    return torch.log(torch.tensor(probabilities))


def test_k3_of_one_token():
    assert k3_sum(batch(([0.5], 1)), policy(0.25)) == pytest.approx(0.1931, abs=1e-4)
    assert k3_sum(batch(([0.25], 1)), policy(0.5)) == pytest.approx(0.3069, abs=1e-4)
    assert k3_sum(batch(([0.5, 0.25], 1)), policy(0.25, 0.5)) == pytest.approx(0.5, abs=1e-4)


def test_tokens_of_a_users_turn_are_no_divergence():
    assert k3_sum(batch(([0.5, 1.0], 1), mask=[1.0, 0.0]), policy(0.25, 0.001)) == pytest.approx(0.1931, abs=1e-4)


def test_copies_weigh_as_often_as_they_were_sampled():
    """Nine of ten answers are the first token: what the sampler itself would give."""
    found = batch(([0.9], 9), ([0.1], 1))
    divergence = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    assert num_candidates(found) == 10
    assert k3_sum(found, policy(0.5, 0.5)) / num_candidates(found) == pytest.approx(divergence, abs=1e-5)


def test_a_sample_is_spread_over_all_that_was_added():
    sample = ResponseSample(4)
    trees = [Tree(prompt_ids=np.int32([i]), answers=[Branch(token_ids=np.int32([1]))]) for i in range(16)]
    sample.add(trees[:10])
    sample.add(trees[10:])
    assert [tree.prompt_ids.tolist() for tree in sample.trees] == [[0], [4], [8], [12]]
