import numpy as np
import pytest

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.evaluations.bootstrap import Bootstrap
from rlsys.evaluations.hallucination import amber_score, object_scores
from rlsys.evaluations.polar import polar_scores, read_polar, read_pope
from rlsys.evaluations.scenes import ScenesEvaluation, ScenesPolarEvaluation
from rlsys.records import RolloutGroup
from rlsys.worlds.scenes.language import describe, read_question, true_answer
from rlsys.worlds.scenes.source import make_prompt, scene_of
from rlsys.worlds.scenes.world import partner
from tests.fakes import sampled_response

registry.discover()


def test_chair_and_recall_of_three_responses():
    scores = object_scores([["a", "b", "c"], ["a"], ["d", "d"]], [{"a", "b"}, {"a"}, {"b"}])
    assert scores.chair_i == 0.5
    assert scores.chair_s == pytest.approx(2 / 3)
    assert scores.recall == 0.75
    assert scores.f1 == pytest.approx(0.6)


def test_empty_answers_count_in_raw_chair_s_only():
    scores = object_scores([["x"], []], [{"a"}, {"a"}])
    assert (scores.chair_s, scores.chair_s_refined) == (0.5, 1.0)


def test_all_empty_is_undefined():
    scores = object_scores([[], []], [{"a"}, {"b"}])
    assert (scores.chair_i, scores.chair_s, scores.chair_s_refined) == (None, 0.0, None)
    assert (scores.recall, scores.f1) == (0.0, None)
    nothing = object_scores([], [])
    assert (nothing.chair_i, nothing.chair_s, nothing.recall, nothing.f1) == (None, None, None, None)


def test_f1_of_nothing_right_is_zero():
    assert object_scores([["x"]], [{"a"}]).f1 == 0.0


def test_an_appended_object_moves_chair_one_way():
    mentions, truths = [["a", "c"], ["b"]], [{"a", "b"}, {"b"}]
    before = object_scores(mentions, truths)
    false_added = object_scores([["a", "c", "z"], ["b"]], truths)
    true_added = object_scores([["a", "c", "b"], ["b"]], truths)
    assert (before.chair_i, false_added.chair_i, true_added.chair_i) == (pytest.approx(1 / 3), 0.5, 0.25)
    assert false_added.chair_s >= before.chair_s


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="2 responses but 1 truths"):
        object_scores([["a"], ["b"]], [{"a"}])
    with pytest.raises(ValueError, match="1 answers but 0 truths"):
        polar_scores([True], [])


def test_amber_score():
    assert amber_score(8.0, 75.0) == 83.5


def test_polar_scores_of_a_balanced_table():
    predicted = [True] * 40 + [True] * 10 + [False] * 40 + [False] * 10
    truth = [True] * 40 + [False] * 10 + [False] * 40 + [True] * 10
    scores = polar_scores(predicted, truth)
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1, scores.yes_ratio) == (0.8, 0.8, 0.8, 0.8, 0.5)


def test_always_yes():
    scores = polar_scores([True] * 10, [True, False] * 5)
    assert (scores.accuracy, scores.f1, scores.yes_ratio) == (0.5, pytest.approx(0.6667, abs=1e-4), 1.0)


def test_always_no_has_no_precision():
    scores = polar_scores([False] * 4, [True, False] * 2)
    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == (0.5, None, 0.0, 0.0)
    assert polar_scores([], []).accuracy is None


def test_the_positive_class_changes_f1_but_not_accuracy():
    predicted = [True, True, True, False, False, False, False, False]
    truth = [True, True, False, True, False, False, False, False]
    yes, no = polar_scores(predicted, truth), polar_scores(predicted, truth, positive=False)
    assert (yes.precision, yes.recall, yes.f1) == (pytest.approx(2 / 3),) * 3
    assert (no.precision, no.recall, no.f1) == (0.8, 0.8, pytest.approx(0.8))
    assert yes.accuracy == no.accuracy == 0.75


@pytest.mark.parametrize(
    "text, said",
    [
        ("yes", True),
        ("Yes, there is a cat.", True),
        ("YES!", True),
        ("no", False),
        ("NO", False),
        ("No!", False),
        ("No; a dog.", False),
        ('"No"', False),
        ("(no)", False),
        ("No, there is not", False),
        ("There isn’t any.", False),
        ("it is not red", False),
        ("there is none, no, nothing", False),
        ("north blue , red , no", False),
        ("north circle blue other , south circle red yes", True),
        ("A picture of a room. Yes.", True),
        ("No. Yes, that is a dog, but no cat.", False),
        ("yes and no", None),
        ("Yes, there is no cat.", None),
        ("", None),
        ("red", None),
        ("know nothing noteworthy", None),
    ],
)
def test_reading_a_polar_answer(text, said):
    assert read_polar(text) is said


@pytest.mark.parametrize(
    "text, said",
    [
        ("yes", True),
        ("No, there is not", False),
        ("there is no cat . yes", False),
        ("it is not red", False),
        ("yes . no", True),
        ("", True),
        ("NO", True),
        ("No!", True),
        ("No;", True),
    ],
)
def test_the_original_rule_of_pope_takes_for_a_yes_what_it_cannot_read(text, said):
    assert read_pope(text) is said


def test_polar_scores_of_the_field_s_example():
    """TP 40, FP 10, TN 40, FN 10."""
    predicted = [True] * 50 + [False] * 50
    truth = [True] * 40 + [False] * 10 + [False] * 40 + [True] * 10
    found = polar_scores(predicted, truth)
    assert (found.accuracy, found.precision, found.recall, found.f1) == (0.8, 0.8, 0.8, 0.8)
    assert (found.yes_ratio, found.unparsable) == (0.5, 0.0)


def test_answers_that_cannot_be_read_are_wrong_and_no_yes():
    """Of four answers two are right; TP 2, FP 0, FN 1."""
    found = polar_scores([True, None, None, True], [True, True, False, True])
    assert (found.accuracy, found.yes_ratio, found.unparsable) == (0.5, 0.5, 0.5)
    assert (found.precision, found.recall) == (1.0, pytest.approx(2 / 3))
    assert found.f1 == pytest.approx(4 / 5)


def test_bootstrap_of_a_mean_has_the_width_of_theory():
    values = np.array([0.0, 1.0] * 200)
    interval = Bootstrap.draw(400, resamples=4000, seed=0).ratio(values, np.ones(400))
    assert interval.value == 0.5
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.025, abs=0.004)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.025, abs=0.004)


def test_bootstrap_is_seeded():
    values, ones = np.arange(20.0), np.ones(20)
    first = Bootstrap.draw(20, resamples=50, seed=1).ratio(values, ones)
    assert first == Bootstrap.draw(20, resamples=50, seed=1).ratio(values, ones)
    assert first != Bootstrap.draw(20, resamples=50, seed=2).ratio(values, ones)


def test_bootstrap_without_a_denominator_is_undefined():
    bootstrap = Bootstrap.draw(3, resamples=200, seed=0)
    assert bootstrap.ratio(np.zeros(3), np.zeros(3)) is None
    rare = bootstrap.ratio(np.array([1.0, 0, 0]), np.array([2.0, 0, 0]))
    assert (rare.value, rare.low, rare.high) == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match="0 and 10"):
        Bootstrap.draw(0, resamples=10, seed=0)


def group(prompt, *texts, counts=None):
    rollouts = tuple(
        sampled_response(
            text=text,
            token_ids=np.zeros(1, np.int32),
            logprobs=np.zeros(1, np.float32),
            count=counts[place] if counts else 1,
            finish_reason="stop",
            temperature=1.0,
            seed=0,
        )
        for place, text in enumerate(texts)
    )
    return RolloutGroup(
        prompt=prompt, round=0, index=0, policy_version=0, prompt_token_ids=np.zeros(1, np.int32), responses=rollouts
    )


def test_scenes_evaluation_of_a_truthful_policy():
    evaluation = ScenesEvaluation(num_scenes=20, resamples=50)
    prompts = evaluation.prompts()
    assert [prompt.id for prompt in prompts[:2]] == ["scenes/heldout/0/describe", "scenes/heldout/1/describe"]
    assert evaluation.prompts() == prompts
    metrics = evaluation.measure([group(prompt, describe(scene_of(prompt))) for prompt in prompts])
    assert {
        name: metrics[name].value for name in ("chair_i", "chair_s", "chair_s_refined", "recall", "unparsable")
    } == {
        "chair_i": 0.0,
        "chair_s": 0.0,
        "chair_s_refined": 0.0,
        "recall": 1.0,
        "unparsable": 0.0,
    }
    assert metrics["false_position"].high == 0.0
    assert "partner_share" not in metrics


def test_scenes_evaluation_of_a_policy_that_adds_a_partner_and_stops_short():
    prompts = ScenesEvaluation(num_scenes=8).prompts()
    groups = []
    for prompt in prompts:
        color, shape = partner(scene_of(prompt).objects[0].kind)
        groups.append(group(prompt, f"{describe(scene_of(prompt))} {shape} {color} at northwest . a"))
    num_objects = sum(len(scene_of(prompt).objects) for prompt in prompts)
    known = sum(partner(scene_of(prompt).objects[0].kind) in scene_of(prompt).kinds for prompt in prompts)
    metrics = ScenesEvaluation(num_scenes=8, resamples=200).measure(groups)
    assert metrics["chair_i"].value == pytest.approx((8 - known) / (num_objects + 8))
    assert metrics["chair_s"].value == pytest.approx((8 - known) / 8)
    assert metrics["unparsable"].value == 1.0
    assert metrics["partner_share"].value == 1.0
    assert metrics["mean_length"].value == pytest.approx((4 * num_objects + 5 * 8) / 8 + 1)
    assert metrics["chair_i"].low <= metrics["chair_i"].value <= metrics["chair_i"].high


def test_copies_of_an_answer_count():
    prompt = make_prompt("heldout", 0, "describe")
    truth = describe(scene_of(prompt))
    color, shape = next((c, s) for c in ("red", "green") for s in ("circle",) if (c, s) not in scene_of(prompt).kinds)
    metrics = ScenesEvaluation(resamples=10).measure([group(prompt, truth, f"{shape} {color} .", counts=[3, 1])])
    assert metrics["chair_s"].value == 0.25


def test_no_answers_no_metrics():
    prompt = make_prompt("heldout", 0, "describe")
    assert ScenesEvaluation(resamples=10).measure([group(prompt)]) == {}
    assert ScenesEvaluation(resamples=10).measure([]) == {}


def test_polar_evaluation():
    evaluation = ScenesPolarEvaluation(num_scenes=40, resamples=50)
    prompts = evaluation.prompts()
    truths = [true_answer(scene_of(prompt), read_question(prompt.question)) for prompt in prompts]
    num_yes = sum(truth.endswith("yes") for truth in truths)
    right = evaluation.measure([group(prompt, truth) for prompt, truth in zip(prompts, truths, strict=True)])
    assert (right["accuracy"].value, right["f1"].value, right["unparsable"].value) == (1.0, 1.0, 0.0)
    assert right["yes_ratio"].value == num_yes / 40
    single = [read_question(prompt.question).form != "exists" for prompt in prompts]
    half = [truth if one else "red" for truth, one in zip(truths, single, strict=True)]
    partly = evaluation.measure([group(prompt, text) for prompt, text in zip(prompts, half, strict=True)])
    assert partly["accuracy_single"].value == 1.0
    assert partly["accuracy"].value == sum(single) / 40
    assert partly["unparsable"].value == (40 - sum(single)) / 40
    always = evaluation.measure([group(prompt, "yes") for prompt in prompts])
    assert always["accuracy"].value == num_yes / 40
    assert always["yes_ratio"].value == 1.0
    mute = evaluation.measure([group(prompt, "red") for prompt in prompts])
    assert (mute["accuracy"].value, mute["yes_ratio"].value, mute["f1"].value) == (0.0, 0.0, 0.0)
    shouted = evaluation.measure([group(prompt, truth.rsplit(" ", 1)[-1].upper() + "!") for prompt, truth in
                                  zip(prompts, truths, strict=True)])  # fmt: skip
    assert (shouted["accuracy"].value, shouted["unparsable"].value) == (1.0, 0.0)
    assert (mute["accuracy_single"].value, mute["unparsable"].value) == (0.0, 1.0)


def test_polar_evaluation_refuses_other_questions():
    with pytest.raises(ValueError, match="scenes/heldout/0/describe"):
        ScenesPolarEvaluation().measure([group(make_prompt("heldout", 0, "describe"), "yes")])


@pytest.mark.parametrize("options", [{"num_scenes": 0}, {"split": "all"}, {"start": -1}, {"resamples": 0}])
def test_wrong_options_are_named(options):
    with pytest.raises(ConfigError, match=f"evaluation.{next(iter(options))}"):
        ScenesEvaluation(**options)
