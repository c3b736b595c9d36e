"""The two sides of a round are counted alike, and a comparison of unlike rounds is refused."""

import pytest

from benchmarks.gpu_learner import QwenWork
from benchmarks.gpu_setup import QWEN_3B, QWEN_7B
from benchmarks.round import _check
from benchmarks.round_sides import Job, Turn, _length, reward

JOB = Job(folder="nowhere", num_prompts=4, max_tokens=3)
PROMPT = "scenes/online/0/describe"


def turn(num_pairs=4, length=3):
    return Turn(seconds=2.0, num_pairs=num_pairs, lengths=(length,) * 2 * num_pairs, loss=0.6931)


def test_an_answer_is_as_long_as_its_tokens_up_to_the_end():
    assert _length([5, 6, 7], {3, 1}) == 3
    assert _length([5, 3, 1, 1], {3, 1}) == 2
    assert _length([3, 1], {3, 1}) == 1


def test_rewards_are_shares_of_true_claims_and_differ_where_words_do():
    nothing, other = reward(PROMPT, "describe", ""), reward(PROMPT, "describe", "at")
    assert 0 <= nothing < 0.001 and 0 <= other < 0.001 and nothing != other
    assert nothing == reward(PROMPT, "describe", "")
    # What stands in that scene, said rightly, wrongly, and half rightly.
    true, false = "northeast circle blue .", "center square black ."
    said = [reward(PROMPT, "describe the picture .", answer) for answer in (true, false, f"{true} {false}")]
    assert said == pytest.approx([1.0, 0.0, 0.5], abs=0.001)


def test_rounds_of_other_counts_or_lengths_are_not_compared():
    said = _check(JOB, {"ours": [turn()], "TRL": [turn()]})
    assert said.startswith("4.0 pairs a round, TRL 4.0; all answers have 3 tokens on both sides")
    with pytest.raises(ValueError, match="pairs a round of 4 prompts"):
        _check(JOB, {"ours": [turn()], "TRL": [turn(num_pairs=2)]})
    with pytest.raises(ValueError, match="answers are not all of 3 tokens"):
        _check(JOB, {"ours": [turn()], "TRL": [turn(length=2)]})


def test_shapes_have_the_sizes_of_the_models_they_are_named_after():
    assert round(QWEN_3B.layer_weights / 1e9, 2) == 2.77
    assert round((QWEN_7B.layer_weights + 2 * QWEN_7B.head_weights) / 1e9, 2) == 7.62
    assert QwenWork(name="x", picture=16, prompt_words=700, answer_tokens=(1500, 1500)).tokens == 3956
