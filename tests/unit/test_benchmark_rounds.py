"""The two sides of a round are counted alike, and a comparison of unlike rounds is refused."""

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo import config as dynamo_config

from benchmarks.learner_ours import WARMUP
from benchmarks.learner_trl import Setting, _warmup
from benchmarks.learner_work import Work
from benchmarks.overlap import Rounds
from benchmarks.round import JUDGED, UNJUDGED, bound, check
from benchmarks.round_ours import Job, Truth, Turn, configuration, reward
from benchmarks.round_trl import Meter, _length
from benchmarks.runs import ClockedWeights
from benchmarks.trl import END, Tuning, forget_compiled, turns_of
from rlsys.asking.driver import without_asking
from rlsys.examples.best_worst import BestWorst
from rlsys.worlds.scenes.source import make_prompt
from tests.fakes import make_group

JOB = Job(folder="nowhere", num_prompts=4, max_tokens=3)
PROMPT = "scenes/online/0/describe"


def turn(num_examples=4, length=3, loss=0.6931, logprob=-2.0, scores=(1.0, 0.0)):
    lengths, scores = (length,) * 2 * num_examples, scores * num_examples
    return Turn(seconds=2.0, num_examples=num_examples, lengths=lengths, scores=scores, loss=loss, logprob=logprob)


def test_a_response_is_as_long_as_its_tokens_up_to_the_end():
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


def test_the_truth_judges_without_an_engine():
    texts = ("northeast circle blue .", "center square black .")
    group = make_group(texts=texts, prompt=make_prompt("online", 0, "describe"))
    found = [verdict.score for verdict in without_asking(Truth().judge(group))]
    assert found == pytest.approx([1.0, 0.0], abs=0.001)


@pytest.mark.parametrize(("words", "judge"), [(UNJUDGED, ""), (JUDGED, "judge")])
def test_our_rounds_are_configured_as_the_rivals_are(words, judge):
    config = configuration(replace(JOB, judge=judge, batch=8, words=words))
    plan = config.schedule.build().plan(0)
    assert (plan.num_prompts, plan.num_candidates, plan.max_tokens, plan.lag, plan.options) == (4, 2, 3, 0, {})
    assert config.roles() == ([judge] if judge else []) and isinstance(config.feedback, Truth) != bool(judge)
    assert config.examples == BestWorst(min_margin=0.0, scale_w=0.0) and config.objective.beta == 0.1
    assert (config.rollout.num_actors, config.learner.num_ranks, config.learner.batch_size) == (2, 2, 8)


def test_rounds_of_other_counts_or_lengths_are_not_compared():
    said = check(JOB, {"ours": [turn()], "TRL": [turn()]})
    assert said.startswith(
        "pairs a round 4, TRL 4; tokens a response 3, TRL 3; nats a token -2, TRL -2; mean score 0.5"
    )
    with pytest.raises(ValueError, match=r"pairs a round are .* more than 1% apart"):
        check(JOB, {"ours": [turn()], "TRL": [turn(num_examples=2)]})
    with pytest.raises(ValueError, match="responses are not all of 3 tokens"):
        check(JOB, {"ours": [turn()], "TRL": [turn(length=2)]})


def test_responses_that_end_by_themselves_are_alike_on_both_sides():
    free = replace(JOB, full=False)

    def said(ours, theirs):
        return check(free, {"ours": [ours], "TRL": [theirs]})

    assert said(turn(num_examples=112, length=17), turn(num_examples=121, length=18)).startswith(
        "pairs a round 112, TRL 121; tokens a response 17, TRL 18"
    )
    with pytest.raises(ValueError, match=r"pairs a round are .* more than 15% apart"):
        said(turn(num_examples=84), turn(num_examples=100))
    with pytest.raises(ValueError, match=r"tokens a response are .* more than 15% apart"):
        said(turn(length=120), turn(length=100))


def test_judges_of_both_sides_give_the_same_scores():
    """The scores have a deviation of 0.5, of which a quarter is allowed."""
    judged = replace(JOB, judge="somewhere")
    assert check(judged, {"ours": [turn()], "TRL": [turn(scores=(1.1, 0.1))]})
    with pytest.raises(ValueError, match=r"scores are .* in the mean"):
        check(judged, {"ours": [turn()], "TRL": [turn(scores=(1.2, 0.2))]})


def rounds(staleness=(0, 0, 0), num_examples=(50, 100, 100), alone=(70, 95)):
    reports = [SimpleNamespace(staleness=s, num_examples=n) for s, n in zip(staleness, num_examples, strict=True)]
    return Rounds(parts=None, reports=reports, num_examples=list(alone))


def test_rounds_whose_stages_overlap_are_held_against_those_one_after_the_other():
    assert rounds().check() == "staleness 0 in every round; 100 pairs a round, 95 one stage after the other"
    with pytest.raises(ValueError, match="staleness"):
        rounds(staleness=(0, 1, 0)).check()
    with pytest.raises(ValueError, match="100 pairs a round, 80 one stage after the other"):
        rounds(alone=(100, 80)).check()


def test_rounds_of_other_policies_or_losses_are_not_compared():
    assert "nats a token -2, TRL -2.05;" in check(JOB, {"ours": [turn()], "TRL": [turn(logprob=-2.05)]})
    with pytest.raises(ValueError, match="do not sample from the same policy"):
        check(JOB, {"ours": [turn()], "TRL": [turn(logprob=-2.3)]})
    with pytest.raises(ValueError, match="not ln 2"):
        check(JOB, {"ours": [turn(loss=0.68)], "TRL": [turn()]})


def test_the_rivals_logprob_is_that_of_a_token_since_the_turn_began():
    """TRL keeps a mean over a step's responses."""
    meter = Meter()
    meter._said = {"logps/chosen": [-99.0], "logps/rejected": [-99.0]}
    meter.begin()
    meter._said["logps/chosen"] += [-10.0, -20.0]
    meter._said["logps/rejected"] += [-12.0, -18.0]
    meter._lengths, meter._losses = [4, 6, 5, 5], [0.7]
    assert meter.turn().logprob == -3.0


def test_the_rivals_pairs_have_two_read_critiques_that_differ():
    """Scores are of the first responses to all prompts, then of the second ones."""
    meter = Meter(SimpleNamespace(scores=lambda prompt_ids, texts: [1.0, 2.0, None, 0.5, 2.0, 3.0]))
    meter._end_ids = {9}
    completions = [[{"content": text}] for text in "abcdef"]
    found = meter.reward(completions, [[1, 9]] * 6, ["p"] * 6, ["q"] * 6)
    assert found == [1.0, 2.0, None, 0.5, 2.0, 3.0]
    assert meter._scores == [1.0, 0.5] and meter._lengths == [2] * 6


def test_a_round_is_bound_by_the_time_of_the_cores():
    """Ours makes two pairs a second and the rival one; three quarters of both cores' time are spent."""
    ours = replace(turn(), cores={"answering": 0.5, "training": 0.75, "driver": 0.25})
    found = bound({"ours": [ours], "TRL": [replace(turn(), seconds=4.0)]}, num_cores=2)
    assert found.ratio == pytest.approx(2.0 / 0.75)
    assert found.why == (
        "both cores busy all the time with what our stages compute (answering 25%, training 38%, driver 12% of their time now)"
    )


def test_a_proof_counts_from_when_both_ends_are_done():
    """Engines hold the weights after 10 ms, the learner has sent them after 30 ms, the proof takes 50 ms more."""

    class Sync:
        def __init__(self):
            self._rollouts = SimpleNamespace(update=lambda: time.sleep(0.01))
            self._learner = SimpleNamespace(send=lambda: time.sleep(0.02))

        def publish(self, version):
            self._rollouts.update()
            self._learner.send()
            time.sleep(0.05)
            return SimpleNamespace(num_bytes=0, version=version)

    weights = ClockedWeights(Sync())
    assert weights.publish(3).version == 3
    assert weights.proof_s == [pytest.approx(0.05, abs=0.02)]


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
    assert tuning.finish() == ("steady", "steady: 3, noisy: 3, slow: 2.9")
    assert not any(trials.values())


def test_a_setting_that_does_not_fit_is_left_out_and_said_why():
    def trial(setting):
        if setting == "large":
            raise torch.OutOfMemoryError
        return [1.0]

    tuning = Tuning(trial)
    for setting in ("large", "small"):
        tuning.add(setting)
    assert tuning.finish() == ("small", "small: 1, large: OutOfMemoryError")


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
        _, told = tuning.finish()
    assert told == "5: 1, 6: 1, 12: FailOnRecompileLimitHit"


def test_what_loader_processes_made_ahead_is_used_up_before_turns_count():
    work = Work(name="x", batch=8, steps=1)
    assert _warmup(work, Setting(size=8)) == WARMUP
    assert _warmup(work, Setting(size=8, workers=1)) == WARMUP + 2
    assert _warmup(work, Setting(size=2, workers=1)) == WARMUP + 1


def test_a_trainer_is_asked_for_so_many_turns_and_then_ended():
    questions = []

    def train(ask):
        result = None
        while (question := ask(result)) != END:
            questions.append(question)
            result = len(questions)

    assert turns_of(train, 3) == [1, 2, 3] and len(questions) == 3
