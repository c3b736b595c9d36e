"""The two sides of a round are counted alike, and a comparison of unlike rounds is refused."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import config as dynamo_config

from benchmarks.gpu_learner import QwenWork
from benchmarks.gpu_setup import QWEN_3B, QWEN_7B
from benchmarks.learner_sides import WARMUP
from benchmarks.learner_trl import Setting, _warmup
from benchmarks.learner_work import Work
from benchmarks.overlap import Rounds
from benchmarks.round import CASES, _check, fitted, limits
from benchmarks.round_sides import Job, Turn, reward
from benchmarks.round_trl import Meter, _length
from benchmarks.trl_turns import Tuned, Tuning, forget_compiled

JOB = Job(folder="nowhere", num_prompts=4, max_tokens=3)
PROMPT = "scenes/online/0/describe"


def turn(num_pairs=4, length=3, loss=0.6931, logprob=-2.0):
    return Turn(seconds=2.0, num_pairs=num_pairs, lengths=(length,) * 2 * num_pairs, loss=loss, logprob=logprob)


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


def test_answers_that_end_by_themselves_are_alike_on_both_sides():
    free = replace(JOB, full=False)

    def said(ours, theirs):
        return _check(free, {"ours": [ours], "TRL": [theirs]})

    assert said(turn(num_pairs=112, length=17), turn(num_pairs=121, length=18)).startswith(
        "112.0 pairs a round, TRL 121.0; 17.0 and 18.0 tokens an answer"
    )
    with pytest.raises(ValueError, match=r"pairs a round are .* more than 15% apart"):
        said(turn(num_pairs=84), turn(num_pairs=100))
    with pytest.raises(ValueError, match=r"tokens an answer are .* more than 15% apart"):
        said(turn(length=120), turn(length=100))


def rounds(staleness=(0, 0, 0), num_pairs=(50, 100, 100), alone=(70, 95)):
    reports = [SimpleNamespace(staleness=s, num_pairs=n) for s, n in zip(staleness, num_pairs, strict=True)]
    return Rounds(parts=None, reports=reports, num_pairs=list(alone))


def test_rounds_whose_stages_overlap_are_held_against_those_one_after_the_other():
    assert rounds().check() == "staleness 0 in every round; 100 pairs a round, 95 one stage after the other"
    assert rounds(num_pairs=(50, 60, 100)).check(uncounted=2).startswith("staleness 0 in every round; 100 pairs")
    with pytest.raises(ValueError, match="staleness"):
        rounds(staleness=(0, 1, 0)).check()
    with pytest.raises(ValueError, match="100 pairs a round, 80 one stage after the other"):
        rounds(alone=(100, 80)).check()


def test_the_rival_is_tried_with_what_fits_the_machine():
    job, _ = CASES["50 M parameters"]
    assert fitted(job, 64e9) == job and job.tried == (16, 32, 64) and not job.untried
    small = fitted(job, 25e9)
    assert small.tried == (16, 32)
    assert small.untried == (
        "TRL is not tried with 64 (11 GB): that is more than a third of this machine's 25 GB, and our side is there at "
        "the same time."
    )
    assert fitted(JOB, 1e9) == JOB


def test_rounds_of_other_policies_or_losses_are_not_compared():
    assert "a token has -2.000 nats, TRL's -2.050" in _check(JOB, {"ours": [turn()], "TRL": [turn(logprob=-2.05)]})
    with pytest.raises(ValueError, match="do not sample from the same policy"):
        _check(JOB, {"ours": [turn()], "TRL": [turn(logprob=-2.3)]})
    with pytest.raises(ValueError, match="not ln 2"):
        _check(JOB, {"ours": [turn(loss=0.68)], "TRL": [turn()]})


def test_the_rivals_log_probability_is_that_of_a_token_since_the_turn_began():
    """TRL keeps a mean over a step's answers."""
    meter = Meter()
    meter._said = {"logps/chosen": [-99.0], "logps/rejected": [-99.0]}
    meter.begin()
    meter._said["logps/chosen"] += [-10.0, -20.0]
    meter._said["logps/rejected"] += [-12.0, -18.0]
    meter._lengths, meter._losses = [4, 6, 5, 5], [0.7]
    assert meter.turn().logprob == -3.0


def test_what_limits_a_round_is_told_by_the_time_of_the_cores():
    """Not by how long processes that share a core were busy."""
    ours = replace(turn(), cores={"answering": 0.5, "training": 1.0, "driver": 0.25}, stages={"rollout": 1.9})
    theirs = replace(turn(), seconds=6.0)
    assert limits({"ours": [ours], "TRL": [theirs]}, num_cores=2) == (
        "Of our 2 cores' time (CPU time of the processes): answering 25%, training 50%, driver 12%. Were everything but the "
        "engines free (answers, loading of weights, probes), and these spread over all cores, the ratio would be 12; "
        "were everything but the learner's ranks, 6."
    )


def test_what_a_pair_costs_is_the_time_of_all_processes():
    assert replace(turn(), cores={"answering": 0.5, "training": 1.0}).cpu_seconds_per_pair == 0.75
    meter = Meter()
    meter._said = {"logps/chosen": [], "logps/rejected": []}
    meter.begin()
    meter._said["logps/chosen"], meter._said["logps/rejected"] = [-1.0], [-1.0]
    meter._lengths, meter._losses, meter._num_pairs = [1, 1], [0.7], 1
    before = time.process_time()
    while time.process_time() - before < 0.05:
        pass
    found = meter.turn()
    assert 0.05 <= found.cpu_seconds_per_pair <= time.process_time() - before + 0.05


def test_shapes_have_the_sizes_of_the_models_they_are_named_after():
    assert round(QWEN_3B.layer_weights / 1e9, 2) == 2.77
    assert round((QWEN_7B.layer_weights + 2 * QWEN_7B.head_weights) / 1e9, 2) == 7.62
    assert QwenWork(name="x", picture=16, prompt_words=700, answer_tokens=(1500, 1500)).tokens == 3956


def test_a_setting_is_as_fast_as_the_median_of_its_turns_and_the_fastest_two_are_tried_twice():
    trials = {
        "steady": [[3.0, 3.0, 3.0], [3.0, 3.0, 3.1]],
        "noisy": [[1.0, 9.0, 4.0], [2.0, 9.0, 1.0]],
        "slow": [[2.9, 2.9, 2.9]],
    }
    tuning = Tuning(lambda setting: trials[setting].pop(0))
    for setting in ("steady", "noisy", "slow"):
        tuning.add(setting)
    assert tuning.best == "noisy"
    found = tuning.finish()
    assert found == Tuned(best="steady", speeds={"steady": 3.0, "noisy": 3.0, "slow": 2.9}) and not any(trials.values())
    assert str(found) == "steady: 3, noisy: 3, slow: 2.9"


def test_a_setting_that_does_not_fit_is_left_out_and_said_why():
    def trial(setting):
        if setting == "large":
            raise torch.OutOfMemoryError
        return [1.0]

    tuning = Tuning(trial)
    for setting in ("large", "small"):
        tuning.add(setting)
    assert str(tuning.finish()) == "small: 1, large: does not fit the memory"
    assert tuning.finish().best == "small" and Tuning(trial).finish().best is None


def test_what_compiles_without_end_is_not_taken_for_compiled():
    def doubled(values, times):
        return values * times

    def trial(num_shapes):
        forget_compiled()
        compiled = torch.compile(doubled, backend="eager", dynamic=False)
        for number in range(num_shapes):  # others than those of another number
            compiled(torch.ones(100 * num_shapes + number), number)
        return [1.0]

    tuning = Tuning(trial)
    with dynamo_config.patch(disable=False):  # an engine that compiles nothing may have been in this process
        for num_shapes in (5, 6, 12):  # each alone: what the first two compile is not counted together
            tuning.add(num_shapes)
        found = tuning.finish()
    assert str(found) == "5: 1, 6: 1, 12: compiles more often than 8 times"


def test_what_loader_processes_made_ahead_is_used_up_before_turns_count():
    work = Work(name="x", batch=8, steps=1)
    assert _warmup(work, Setting(size=8)) == WARMUP
    assert _warmup(work, Setting(size=8, workers=1)) == WARMUP + 2
    assert _warmup(work, Setting(size=2, workers=1)) == WARMUP + 1
