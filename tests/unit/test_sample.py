"""The KL estimate, held against the divergence of distributions over one token."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from learners.metrics import FitMetrics
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


def tree(prompt, *answers):
    """Of texts that were sampled at temperature 1, or of (text, changes)."""
    given = [(answer, {}) if isinstance(answer, str) else answer for answer in answers]
    rollouts = [sampled_response(text, **changes) for text, changes in given]
    return Tree(
        prompt_ids=np.int32([prompt]), answers=[Branch(token_ids=one.token_ids, rollout=one) for one in rollouts]
    )


def kept(trees):
    return [(int(one.prompt_ids[0]), [answer.rollout.text for answer in one.answers]) for one in trees]


def test_a_sample_is_spread_over_all_that_was_added():
    sample = ResponseSample(4)
    trees = [tree(number, "a") for number in range(16)]
    sample.add(trees[:10])
    sample.add(trees[10:])
    assert [prompt for prompt, _ in kept(sample.trees)] == [0, 4, 8, 12]


def test_an_answer_counts_once_in_however_many_batches_its_pairs_lie():
    sample = ResponseSample(100)
    sample.add([tree(1, "a", "b"), tree(2, "a")])
    sample.add([tree(1, "b", "c"), tree(2, "a")])
    sample.add([tree(1, "a", "b")])  # the next epoch
    assert kept(sample.trees) == [(1, ["a", "b"]), (2, ["a"]), (1, ["c"])]


def test_an_answer_counts_on_one_rank_only():
    first, second = ResponseSample(100), ResponseSample(100)
    first.add([tree(1, "a", "b")])
    second.add([tree(1, "b", "c"), tree(2, "a")])
    assert kept(second.without(first.seen)) == [(1, ["c"]), (2, ["a"])]
    second = ResponseSample(100)
    second.add([tree(1, "a")])
    assert second.without(first.seen) == []


def test_answers_of_other_temperatures_are_left_out():
    sample = ResponseSample(100)
    sample.add([tree(1, "a", ("b", {"temperature": 0.7})), tree(2, ("a", {"temperature": 1.2}))])
    assert kept(sample.trees) == [(1, ["a"])]


def test_answers_that_nobody_sampled_are_left_out():
    sample = ResponseSample(100)
    sample.add([Tree(prompt_ids=np.int32([1]), answers=[Branch(token_ids=np.int32([2]))])])
    assert sample.trees == []


def end(**changes):
    return {"kl_sum": 0.0, "kl_responses": 0.0, "reference_checked": 0.0, "seconds": 0.0, **changes}


def test_without_any_answer_at_temperature_1_there_is_no_kl():
    tally = FitMetrics()
    step = SimpleNamespace(
        sums={"loss": 1.0, "examples": 2.0, "tokens": 9.0}, denominator=2.0, grad_norm=1.0, seconds=0.0
    )
    tally.add([step])
    assert "kl" not in tally.report([end()]).metrics
    assert tally.report([end(), end(kl_sum=3.0, kl_responses=6.0)]).metrics["kl"] == 0.5
