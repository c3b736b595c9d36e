import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.records import CritiquePair
from rlsys.worlds.scenes.annotate import annotate, critique_pairs, shorten
from rlsys.worlds.scenes.language import JUDGE_TEMPLATE, read_question, true_answer, vocabulary
from rlsys.worlds.scenes.source import make_prompt, scene_of
from rlsys.worlds.scenes.truth import Claim, check, parse
from rlsys.worlds.scenes.world import Placed, Scene, sample

SCENE = Scene((Placed(("red", "circle"), 0), Placed(("black", "cross"), 2), Placed(("red", "square"), 4)))
DESCRIBE = "describe the picture ."


def verdicts(answer, question=DESCRIBE):
    return [check(claim, SCENE) for claim in parse(answer, question).claims]


def test_a_statement_claims_an_object_and_its_position():
    answer = parse("circle red at northwest .", DESCRIBE)
    red_circle = ("red", "circle")
    assert answer.claims == [
        Claim("object", "there", kind=red_circle),
        Claim("position", "northwest", kind=red_circle),
    ]
    assert answer.mentions == [red_circle]
    assert answer.unparsed == []


@pytest.mark.parametrize(
    "sentence, expected",
    [
        ("circle red at northwest .", [True, True]),
        ("circle red at north .", [True, False]),
        ("square blue at north .", [False, False]),
        ("northwest circle red .", [True, True]),
        ("north circle red .", [True, False]),
        ("cross black .", [True]),
        ("circle red left of cross black .", [True, True, True]),
        ("circle red below of cross black .", [True, True, False]),
        ("circle red above of cross green .", [True, False, False]),
        ("two red shapes .", [True]),
        ("three shapes .", [True]),
        ("one shape .", [False]),
    ],
)
def test_statements_are_checked(sentence, expected):
    assert verdicts(sentence) == expected


@pytest.mark.parametrize(
    "question, answer, expected",
    [
        ("is there a red circle ?", "yes", [True]),
        ("is there a red circle ?", "no .", [False]),
        ("is there a blue circle ?", "no", [True]),
        ("is there a red circle ?", "northwest circle red , yes", [True, True, True]),
        ("is there a red circle ?", "northeast circle red , yes .", [True, False, True]),
        ("is the shape at northwest blue ?", "northwest circle red , no", [True, True, True]),
        ("is the shape at northwest blue ?", "northwest cross red , no .", [False, False, True]),
        ("is there a green circle ?", "northwest circle red other , no", [True, True, True]),
        ("is there a red circle ?", "northwest circle red other , no", [True, True, False]),
        ("is there a red circle ?", "center square red other , northwest circle red yes", [True] * 5),
        ("is the shape at northwest blue ?", "northwest red , blue , no", [True, True]),
        ("is the shape at northwest blue ?", "northwest blue , blue , yes", [False, False]),
        ("is the shape at northwest a cross ?", "northwest circle , cross , yes", [True, False]),
        ("is the shape at northwest red ?", "yes", [True]),
        ("is the shape at northwest a cross ?", "yes", [False]),
        ("is the shape at southwest a cross ?", "yes", [False]),
        ("what color is the shape at northeast ?", "black", [True]),
        ("what shape is at northeast ?", "circle", [False]),
        ("how many shapes are there ?", "three", [True]),
        ("how many red shapes are there ?", "one", [False]),
        ("where is the red square ?", "center", [True]),
        ("where is the blue square ?", "center", [False]),
        ("on which side of the red circle is the red square ?", "right", [True]),
        ("on which side of the red circle is the red square ?", "below", [True]),
        ("on which side of the red circle is the red square ?", "left", [False]),
    ],
)
def test_short_answers_are_read_with_their_question(question, answer, expected):
    assert verdicts(answer, question) == expected


def test_a_denied_object_is_no_mention():
    assert parse("no", "is there a red circle ?").mentions == []
    assert parse("yes", "is there a red circle ?").mentions == [("red", "circle")]


def test_repeated_mentions_count_each_time():
    assert parse("circle red . circle red .", DESCRIBE).mentions == [("red", "circle")] * 2


@pytest.mark.parametrize(
    "answer, unparsed, mentions",
    [
        ("", [""], []),
        ("...", [""], []),
        ("red", ["red"], []),
        ("circle red at northwest . blue", ["blue"], [("red", "circle")]),
        (
            "oh square blue there . circle red .",
            ["oh square blue there"],
            [("blue", "square"), ("red", "circle")],
        ),
        ("circle red at at", ["circle red at at"], [("red", "circle")]),
    ],
)
def test_what_cannot_be_read_is_reported_and_hides_no_object(answer, unparsed, mentions):
    read = parse(answer, DESCRIBE)
    assert read.unparsed == unparsed
    assert read.mentions == mentions


def test_an_answer_of_the_wrong_sort_is_unreadable():
    assert parse("red", "is there a red circle ?").unparsed == ["red"]
    assert parse("red", "is there a red circle ?").claims == []
    assert parse("oh , yes", "is there a red circle ?").unparsed == ["oh , yes"]
    assert parse("yes , two", "how many shapes are there ?").unparsed == ["yes , two"]


def test_case_and_spaces_do_not_matter():
    assert parse("  Northwest  circle RED.", DESCRIBE) == parse("northwest circle red .", DESCRIBE)


@given(st.text() | st.lists(st.sampled_from(vocabulary())).map(" ".join), st.text() | st.just("is there a red cross ?"))
def test_no_text_breaks_the_parser(answer, question):
    read = parse(answer, question)
    assert read.sentences
    for claim in read.claims:
        check(claim, SCENE)


@pytest.mark.parametrize("task", ["describe", "polar", "open"])
def test_true_answers_are_true_claim_by_claim(task):
    for index in range(200):
        prompt = make_prompt("train", index, task)
        scene = scene_of(prompt)
        read = parse(true_answer(scene, read_question(prompt.question)), prompt.question)
        assert read.unparsed == []
        assert read.claims and all(check(claim, scene) for claim in read.claims)


# What stands in scene 0 of the annotated split.
EXPECTED_SCENE = [(("blue", "cross"), "northeast"), (("yellow", "circle"), "south")]
EXPECTED_NOTES = [
    ("cross blue at northeast . circle yellow at south .", "cross blue true . circle yellow true .", 0.0),
    ("cross blue at northeast .", "cross blue true . missing circle yellow .", -0.2),
    (
        "cross blue at northwest . square red at southwest . circle yellow at south .",
        "cross blue misplaced . square red false . circle yellow true .",
        -2.0,
    ),
    (
        "cross blue at northeast . cross blue at northeast . circle yellow .",
        "cross blue true . cross blue repeated . circle yellow true .",
        -1.0,
    ),
    ("two shapes .", "two shapes true . missing cross blue . missing circle yellow .", -0.4),
    ("yes", "answer unclear . missing cross blue . missing circle yellow .", -3.4),
]


def test_the_annotator_goes_claim_by_claim():
    scene = sample("annotated", 0)
    assert [(placed.kind, placed.position) for placed in scene.objects] == EXPECTED_SCENE
    prompt = make_prompt("annotated", 0, "describe")
    for answer, critique, worth in EXPECTED_NOTES:
        note = annotate(prompt, answer)
        assert note.critique == critique
        assert note.worth == pytest.approx(worth)


@pytest.mark.parametrize("split", ["online", "heldout"])
def test_the_annotator_refuses_splits_without_annotation(split):
    prompt = make_prompt(split, 3, "describe")
    with pytest.raises(ValueError, match=f"scenes/{split}/3/describe"):
        annotate(prompt, "circle red .")
    with pytest.raises(ValueError, match=f"scenes/{split}/3/describe"):
        list(critique_pairs([(prompt, ["circle red .", "cross red ."])]))


def test_fewer_false_claims_win_and_omissions_break_ties():
    prompt = make_prompt("annotated", 0, "describe")
    scene = scene_of(prompt)
    full = true_answer(scene, read_question(prompt.question))
    sentences = [f"{sentence.strip()} ." for sentence in full.split(".") if sentence.strip()]
    absent = next(f"circle {c} at northwest ." for c in ("red", "green") if (c, "circle") not in scene.kinds)
    worths = [
        annotate(prompt, answer).worth
        for answer in (full, " ".join(sentences[1:]), f"{full} {absent}", f"{absent} {absent} {full}")
    ]
    assert worths == sorted(worths, reverse=True) and len(set(worths)) == 4
    assert worths[0] == 0.0
    assert annotate(prompt, sentences[0]).worth > -1.0


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("task", ["polar", "open"])
def test_answers_to_questions_are_annotated(task, index):
    prompt = make_prompt("annotated", index, task)
    truth = true_answer(scene_of(prompt), read_question(prompt.question))
    assert annotate(prompt, truth).critique == f"{truth} true ."
    assert annotate(prompt, truth).worth == 0.0
    assert annotate(prompt, "describe").critique == "answer unclear ."
    assert annotate(prompt, "describe").worth == -1.0


def test_changing_the_subject_is_worth_less_than_any_description():
    prompt = make_prompt("annotated", 0, "describe")
    everything_wrong = "circle black at center . " * len(scene_of(prompt).objects)
    assert annotate(prompt, "no").worth < annotate(prompt, everything_wrong).worth
    assert annotate(prompt, "").worth < annotate(prompt, everything_wrong).worth


def test_the_critic_is_shown_disturbed_answers():
    shown = set()
    for index in range(40):
        prompt = make_prompt("annotated", index, "describe")
        full = true_answer(scene_of(prompt), read_question(prompt.question))
        for pair in critique_pairs([(prompt, [full])], num_shortened=0, disturbed_rate=1.0):
            rejected = pair.rejected_prompt.question.split(" answer : ")[1].removesuffix(" evaluation :")
            assert pair.chosen_prompt.question.endswith(f"answer : {full} evaluation :")
            shown.add("empty" if not rejected.strip() else "behind" if rejected.startswith(full) else "alone")
            assert ("missing" in pair.rejected_critique) == (not rejected.startswith(full))
    assert shown == {"empty", "alone", "behind"}
    with pytest.raises(ValueError, match=r"disturbed_rate must be within 0\.\.1, got 2"):
        list(critique_pairs([], disturbed_rate=2))


def test_critiques_are_made_of_the_vocabulary():
    words = set(vocabulary())
    prompt = make_prompt("annotated", 0, "describe")
    for answer in ("two red shapes . what", "circle red left of cross blue .", "circle red . circle red ."):
        assert set(annotate(prompt, answer).critique.split()) <= words


def test_critique_pairs_show_the_judge_both_answers_the_better_one_chosen():
    prompt = make_prompt("annotated", 0, "describe")
    full = true_answer(scene_of(prompt), read_question(prompt.question))
    pairs = list(critique_pairs([(prompt, ["", full, full])], num_shortened=0, disturbed_rate=0))
    assert len(pairs) == 1
    pair = pairs[0]
    assert isinstance(pair, CritiquePair)
    assert pair.chosen_prompt.question == JUDGE_TEMPLATE.format(question=DESCRIBE, answer=full)
    assert pair.rejected_prompt.question == JUDGE_TEMPLATE.format(question=DESCRIBE, answer="")
    assert pair.chosen_prompt.images == prompt.images
    assert pair.chosen_critique == annotate(prompt, full).critique
    assert "<score>" not in pair.chosen_critique


def test_pairs_of_a_prompt_are_limited_and_repeatable():
    prompt = make_prompt("annotated", 0, "describe")
    full = true_answer(scene_of(prompt), read_question(prompt.question))
    answers = [full, full + " what .", full + " what . what ."]
    everything = list(critique_pairs([(prompt, answers)], max_pairs_per_prompt=0, num_shortened=0, disturbed_rate=0))
    some = list(critique_pairs([(prompt, answers)], max_pairs_per_prompt=2, num_shortened=0, disturbed_rate=0, seed=1))
    assert len(some) == 2 and len(everything) > 2
    assert all(pair in everything for pair in some)
    assert some == list(
        critique_pairs([(prompt, answers)], max_pairs_per_prompt=2, num_shortened=0, disturbed_rate=0, seed=1)
    )


def test_shortened_answers_teach_what_an_omission_is():
    prompt = make_prompt("annotated", 0, "describe")
    full = true_answer(scene_of(prompt), read_question(prompt.question))
    (pair,) = critique_pairs([(prompt, [full])], num_shortened=1, disturbed_rate=0)
    assert pair.chosen_critique == "cross blue true . circle yellow true ."
    assert pair.rejected_critique in (
        "cross blue true . missing circle yellow .",
        "circle yellow true . missing cross blue .",
    )
    assert list(critique_pairs([(prompt, [full])], num_shortened=0, disturbed_rate=0)) == []
    assert shorten("north circle red .", np.random.default_rng(0)) == "north circle red ."


def test_answers_of_equal_worth_make_no_pair():
    prompt = make_prompt("annotated", 0, "describe")
    assert list(critique_pairs([(prompt, ["what", "where"])])) == []


def test_a_negative_limit_is_refused():
    with pytest.raises(ValueError, match="-1"):
        list(critique_pairs([], max_pairs_per_prompt=-1))
    with pytest.raises(ValueError, match=r"num_shortened .* -2"):
        list(critique_pairs([], num_shortened=-2))


def test_an_object_that_is_denied_is_not_mentioned():
    answer = parse("there is no red circle but a blue square and not a green square", "describe the picture")
    assert answer.mentions == [("blue", "square")]
    assert [claim.denied for claim in answer.claims] == [True, False, True]
