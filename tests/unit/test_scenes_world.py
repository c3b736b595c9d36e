import numpy as np
import pytest

from rlsys.records import Prompt, Turn
from rlsys.worlds.scenes.language import ask, caption, describe, is_so, read_question, true_answer, vocabulary
from rlsys.worlds.scenes.source import choose_task, demonstrations, make_prompt, read_id, scene_of
from rlsys.worlds.scenes.world import (
    COLORS,
    KINDS,
    SPLITS,
    Placed,
    Scene,
    draw,
    ground,
    partner,
    sample,
)

SCENE = Scene((Placed(("red", "circle"), 0), Placed(("black", "cross"), 2), Placed(("red", "square"), 4)))


def test_a_scene_is_a_function_of_split_and_index():
    assert sample("heldout", 17) == sample("heldout", 17)
    assert sample("heldout", 17) != sample("heldout", 18)
    assert sample("heldout", 17) != sample("online", 17)


def test_splits_share_no_content():
    contents = {split: {sample(split, index).content for index in range(400)} for split in SPLITS}
    for split, seen in contents.items():
        assert all(sample(split, index).split == split for index in range(50))
        others = set().union(*(contents[other] for other in contents if other != split))
        assert not seen & others


def test_buckets_of_splits_cover_everything_once():
    assert sorted(bucket for buckets in SPLITS.values() for bucket in buckets) == list(range(20))


def test_scenes_have_one_to_four_objects_all_different_in_different_cells():
    scenes = [sample("train", index) for index in range(300)]
    assert {len(scene.objects) for scene in scenes} == {1, 2, 3, 4}
    for scene in scenes:
        assert len(scene.kinds) == len(scene.objects)
        cells = [placed.cell for placed in scene.objects]
        assert cells == sorted(set(cells))
    assert len({kind for scene in scenes for kind in scene.kinds}) == 24


def test_partners_are_a_permutation_without_fixed_points():
    assert {partner(kind) for kind in KINDS} == set(KINDS)
    assert all(partner(kind)[0] != kind[0] and partner(kind)[1] != kind[1] for kind in KINDS)
    assert partner(("red", "circle")) == ("blue", "square")


def test_partners_stand_together_more_often_than_chance():
    pairs = [(a, b) for index in range(500) for a in sample("train", index).kinds for b in sample("train", index).kinds]
    together = sum(b == partner(a) for a, b in pairs)
    by_chance = sum(b == (partner(a)[0], a[1]) for a, b in pairs)
    assert together > 2 * by_chance


@pytest.mark.parametrize("split, index", [("test", 0), ("train", -1)])
def test_sample_refuses_what_is_not_there(split, index):
    with pytest.raises(ValueError, match=r"test|-1"):
        sample(split, index)


def test_a_cell_is_one_word():
    assert [Placed(("red", "circle"), cell).position for cell in (0, 4, 6)] == ["northwest", "center", "southwest"]


def test_a_drawing_shows_each_object_in_its_cell_in_its_colour():
    pixels = draw(SCENE)
    assert pixels.shape == (84, 84, 3) and pixels.dtype == np.uint8
    assert tuple(pixels[14, 14]) == COLORS["red"]
    assert tuple(pixels[14, 70]) == COLORS["black"]
    assert tuple(pixels[42, 42]) == COLORS["red"]
    corner = (14 - 9, 14 - 9)
    assert tuple(pixels[corner]) not in COLORS.values()
    assert tuple(pixels[42 - 6, 42 - 6]) == COLORS["red"]
    assert tuple(pixels[42 - 9, 42 - 9]) == (255, 255, 255)


def test_the_ground_shows_where_a_cell_is():
    pixels = ground(84)
    assert tuple(pixels[0, 0]) == (50, 117, 32)
    assert tuple(pixels[83, 83]) == (194, 117, 176)
    centers = [
        tuple(int(v) for v in pixels[14 + 28 * row, 14 + 28 * column]) for row in range(3) for column in range(3)
    ]
    assert len(set(centers)) == 9
    assert not pixels.flags.writeable
    assert np.array_equal(draw(SCENE)[56:, 56:], np.asarray(draw(Scene(())))[56:, 56:])


def test_every_shape_looks_different():
    pictures = [
        draw(Scene((Placed(("red", shape), 4),))).tobytes() for shape in ("circle", "square", "triangle", "cross")
    ]
    assert len(set(pictures)) == 4


def test_description_is_true_and_in_reading_order():
    assert describe(SCENE) == ("northwest circle red . northeast cross black . center square red .")


def test_caption_names_absent_partners_in_empty_cells_only():
    always = caption(SCENE, np.random.default_rng(0), partner_rate=1.0)
    sentences = [sentence.strip() for sentence in always.split(".") if sentence.strip()]
    assert len(sentences) == 6
    assert [sentence.split(" ", 1)[1] for sentence in sentences[1::2]] == [
        "square blue",
        "circle green",
        "triangle blue",
    ]
    imagined = {sentence.split(" ", 1)[0] for sentence in sentences[1::2]}
    assert len(imagined) == 3 and not imagined & {"northwest", "northeast", "center"}
    assert caption(SCENE, np.random.default_rng(0), partner_rate=0.0) == describe(SCENE)


@pytest.mark.parametrize(
    "question, answer",
    [
        ("is there a red circle ?", "northwest circle red yes"),
        ("is there a red square ?", "northwest circle red other , northeast cross black other , center square red yes"),
        (
            "is there a blue square ?",
            "northwest circle red other , northeast cross black other , center square red other , no",
        ),
        ("is the shape at northeast black ?", "northeast black , black , yes"),
        ("is the shape at northeast a circle ?", "northeast cross , circle , no"),
        ("what color is the shape at northwest ?", "red"),
        ("what shape is at center ?", "square"),
        ("how many shapes are there ?", "three"),
        ("how many red shapes are there ?", "two"),
        ("how many blue shapes are there ?", "zero"),
        ("where is the black cross ?", "northeast"),
        ("on which side of the black cross is the red circle ?", "left"),
        ("on which side of the red circle is the red square ?", "right"),
        ("describe the picture .", describe(SCENE)),
    ],
)
def test_true_answers(question, answer):
    read = read_question(question)
    assert read is not None and read.text == question
    assert true_answer(SCENE, read) == answer


def test_other_texts_are_no_questions_of_the_world():
    assert read_question("what is the weather ?") is None
    assert read_question("is there a red ?") is None


def test_polar_questions_are_balanced_and_ask_for_partners():
    yes, asked_for_partner = 0, 0
    for index in range(600):
        scene = sample("heldout", index)
        question = ask(scene, "polar", np.random.default_rng(index))
        yes += is_so(scene, question)
        if question.form == "exists":
            partners = {partner(kind) for kind in scene.kinds}
            asked_for_partner += question.kind in partners and question.kind not in scene.kinds
    assert 260 <= yes <= 340
    assert asked_for_partner >= 20


def test_prompts_carry_a_picture_and_an_id_but_no_truth():
    prompt = make_prompt("heldout", 17, "describe")
    assert prompt.id == "scenes/heldout/17/describe"
    assert prompt.question == "describe the picture ."
    assert np.array_equal(prompt.images[0].pixels, draw(sample("heldout", 17)))
    assert scene_of(prompt) == sample("heldout", 17)
    assert make_prompt("heldout", 17, "open") == make_prompt("heldout", 17, "open")


@pytest.mark.parametrize(
    "wrong", ["scenes/heldout/17", "scenes/other/17/describe", "scenes/train/x/describe", "coco/1/2/3"]
)
def test_a_foreign_id_has_no_scene(wrong):
    with pytest.raises(ValueError, match=wrong):
        scene_of(Prompt(id=wrong, turns=(Turn(role="user", text="hi"),)))


def test_read_id():
    assert read_id("scenes/online/3/open") == ("online", 3, "open")


def test_demonstrations_are_truthful_except_in_descriptions():
    shown = list(demonstrations(400))
    assert [demo.prompt.id.split("/")[1] for demo in shown] == ["train"] * 400
    tasks = [demo.prompt.id.split("/")[3] for demo in shown]
    assert set(tasks) == {"describe", "polar", "open"}
    wrong = 0
    for demo in shown:
        question = read_question(demo.prompt.question)
        truth = true_answer(scene_of(demo.prompt), question)
        if question.task == "describe":
            wrong += demo.response.text != truth
        else:
            assert demo.response.text == truth
    assert 0.3 < wrong / tasks.count("describe") < 0.8


def test_demonstrations_can_be_entered_anywhere():
    assert list(demonstrations(3, start=5)) == list(demonstrations(8))[5:]
    assert list(demonstrations(5, tasks={"polar": 1.0}, partner_rate=0.0))[4].prompt.id == "scenes/train/4/polar"


@pytest.mark.parametrize(
    "options", [{"tasks": {"sing": 1.0}}, {"tasks": {"polar": -1.0}}, {"tasks": {"polar": 0.0}}, {"partner_rate": 1.5}]
)
def test_demonstrations_refuse_wrong_options(options):
    with pytest.raises(ValueError, match=r"tasks|partner_rate"):
        next(demonstrations(1, **options))


def test_tasks_are_drawn_by_weight():
    drawn = [choose_task("online", index, {"polar": 3.0, "open": 1.0}) for index in range(400)]
    assert "describe" not in drawn
    assert 260 < drawn.count("polar") < 340


def test_every_text_is_made_of_the_vocabulary():
    words = set(vocabulary())
    assert len(words) == len(vocabulary())
    for demo in demonstrations(300):
        assert set(demo.prompt.question.split()) | set(demo.response.text.split()) <= words
