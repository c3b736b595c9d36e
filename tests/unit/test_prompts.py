import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PillowImage

from rlsys import registry
from rlsys.contracts import PromptSource
from rlsys.errors import ConfigError, PromptsExhausted
from rlsys.prompts.datasets import DatasetPrompts
from rlsys.prompts.fingerprint import Fingerprint
from rlsys.prompts.images import load_images
from rlsys.prompts.jsonl import JsonlPrompts
from rlsys.prompts.scenes import ScenesPrompts

RED, BLUE = (255, 0, 0), (0, 0, 255)


def png(color, size=(4, 2)):
    buffer = io.BytesIO()
    PillowImage.new("RGB", size, color).save(buffer, format="PNG")
    return buffer.getvalue()


def colors(prompt):
    return [tuple(int(value) for value in image.pixels[0, 0]) for image in prompt.images]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "red.png").write_bytes(png(RED))
    (tmp_path / "pictures" / "blue.png").write_bytes(png(BLUE))
    return tmp_path


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_sources_are_registered():
    assert {"scenes", "jsonl", "datasets"} <= set(registry.prompts)
    assert isinstance(registry.prompts.make("scenes"), PromptSource)


def test_scenes_can_be_entered_anywhere():
    source = ScenesPrompts()
    assert [prompt.id for prompt in source.take(3, 2)] == ["scenes/online/3/describe", "scenes/online/4/describe"]
    assert list(source.take(3, 2)) == list(source.take(0, 5))[3:]
    assert next(ScenesPrompts(split="train", offset=7).take(3, 1)).id == "scenes/train/10/describe"


def test_scenes_mix_tasks_by_weight():
    prompts = list(ScenesPrompts(tasks={"describe": 1.0, "polar": 1.0}).take(0, 200))
    asked = [prompt.id.rsplit("/", 1)[1] for prompt in prompts]
    assert 70 < asked.count("polar") < 130 and asked.count("polar") + asked.count("describe") == 200


@pytest.mark.parametrize(
    "options, message",
    [
        ({"split": "test"}, "prompts.split .* 'test'"),
        ({"offset": -1}, "prompts.offset .* -1"),
        ({"tasks": {"sing": 1.0}}, "prompts.tasks .* 'sing'"),
        ({"tasks": {}}, "prompts.tasks"),
    ],
)
def test_scenes_name_a_wrong_option(options, message):
    with pytest.raises(ConfigError, match=message):
        ScenesPrompts(**options)


def test_jsonl(folder):
    path = write_lines(
        folder / "prompts.jsonl",
        [
            {"id": "one", "prompt": "what is it ?", "image": "pictures/red.png"},
            "\n",
            {"id": "two", "prompt": "compare", "images": ["pictures/red.png", "pictures/blue.png"]},
            {"id": "three", "turns": [{"role": "system", "text": "be brief"}, {"role": "user", "text": "hello"}]},
        ],
    )
    one, two, three = JsonlPrompts(path=path).take(0, 3)
    assert (one.id, one.question, colors(one)) == ("one", "what is it ?", [RED])
    assert one.images[0].pixels.shape == (2, 4, 3)
    assert colors(two) == [RED, BLUE]
    assert [(turn.role, turn.text) for turn in three.turns] == [("system", "be brief"), ("user", "hello")]
    assert three.images == ()
    assert [prompt.id for prompt in JsonlPrompts(path=path).take(1, 2)] == ["two", "three"]
    with pytest.raises(PromptsExhausted, match=r"prompts\.jsonl has 3 prompts, 4 were asked for"):
        list(JsonlPrompts(path=path).take(2, 2))


@pytest.mark.parametrize(
    "line, message",
    [
        ("{oops\n", "bad.jsonl:1: not JSON"),
        ('{"prompt": "hi"}\n', "bad.jsonl:1: .*`id`"),
        ('{"id": "a"}\n', "either `prompt` or `turns`"),
        ('{"id": "a", "turns": [{"role": "assistant", "text": "hi"}]}\n', "the user's last"),
        ('{"id": "a", "turns": [{"role": "robot", "text": "hi"}]}\n', "system, user, assistant"),
        ('{"id": "a", "prompt": 3}\n', "a text"),
        ('{"id": "a", "prompt": "hi", "image": "gone.png"}\n', "bad.jsonl:1: image: .*gone.png"),
        ('{"id": "a", "prompt": "\\ud800"}\n', "bad.jsonl:1: text: .*surrogates not allowed"),
        ('{"id": "a", "prompt": "hi", "image": "bad.jsonl"}\n', "bad.jsonl:1: image: cannot identify"),
        ('{"id": "a", "prompt": "hi", "image": 5}\n', "bad.jsonl:1: image: .*got int"),
        ('{"id": "a", "prompt": "hi", "image": {"path": 5}}\n', "bad.jsonl:1: image: an image must be a path"),
    ],
)
def test_jsonl_says_which_line_is_wrong(tmp_path, line, message):
    path = write_lines(tmp_path / "bad.jsonl", [line])
    with pytest.raises(ConfigError, match=message):
        list(JsonlPrompts(path=path).take(0, 1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ('{"id": "a", "prompt": "other"}\n', r"late\.jsonl:4: another prompt than line 1, with the same id 'a'"),
        (
            '{"id": "c", "prompt": "x", "images": ["gone.png"]}\n',
            r"late\.jsonl:4: image: there is no file '.*gone\.png'",
        ),
        ('{"id": "c"}\n', r"late\.jsonl:4: a line must have either"),
    ],
)
def test_jsonl_is_looked_at_to_its_end_before_the_first_prompt_is_taken(tmp_path, wrong, message):
    good = [{"id": "a", "prompt": "hi"}, "\n", {"id": "b", "prompt": "ho"}]
    path = write_lines(tmp_path / "late.jsonl", [*good, wrong])
    with pytest.raises(ConfigError, match=message):
        next(JsonlPrompts(path=path).take(0, 1))


def test_jsonl_may_repeat_a_prompt(tmp_path):
    path = write_lines(tmp_path / "twice.jsonl", [{"id": "a", "prompt": "hi"}] * 2)
    assert [prompt.id for prompt in JsonlPrompts(path=path).take(0, 2)] == ["a", "a"]


def test_jsonl_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path):
    (tmp_path / "marked.jsonl").write_bytes(b'\xef\xbb\xbf{"id": "a", "prompt": "caf\xc3\xa9"}\n')
    (only,) = JsonlPrompts(path=str(tmp_path / "marked.jsonl")).take(0, 1)
    assert only.question == "caf\u00e9"
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "caf\xe9"}\n')
    with pytest.raises(ConfigError, match=r"latin\.jsonl:2: not UTF-8"):
        list(JsonlPrompts(path=str(tmp_path / "latin.jsonl")).take(0, 2))


def known_by(file):
    return Fingerprint(JsonlPrompts(path=file).take(0, 2)).hex


def test_prompts_are_known_by_what_they_ask_and_not_by_where_they_are_stored(folder, tmp_path_factory):
    rows = [{"id": "a", "prompt": "What?", "image": "pictures/red.png"}, {"id": "b", "prompt": "Where?"}]
    file = folder / "prompts.jsonl"
    told = [known_by(write_lines(file, rows))]
    moved = tmp_path_factory.mktemp("moved")
    shutil.copytree(folder, moved, dirs_exist_ok=True)
    assert known_by(str(moved / "prompts.jsonl")) == told[0]
    assert known_by(write_lines(file, [*rows, {"id": "c", "prompt": "Who?"}])) == told[0]
    told.append(known_by(write_lines(file, [rows[0], {**rows[1], "prompt": "When?"}])))
    told.append(known_by(write_lines(file, [rows[0], {**rows[1], "id": "c"}])))
    told.append(known_by(write_lines(file, [rows[1], rows[0]])))
    told.append(known_by(write_lines(file, [{**rows[0], "image": "pictures/blue.png"}, rows[1]])))
    system = [{"role": "system", "text": "Be brief."}, {"role": "user", "text": "Where?"}]
    told.append(known_by(write_lines(file, [rows[0], {"id": "b", "turns": system}])))
    write_lines(file, rows)
    (folder / "pictures" / "red.png").write_bytes(png(BLUE))
    assert known_by(str(file)) == told[4] and len(set(told)) == 6


def test_jsonl_without_a_file(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.jsonl"):
        list(JsonlPrompts(path=str(tmp_path / "nothing.jsonl")).take(0, 1))
    with pytest.raises(ConfigError, match=r"prompts\.path"):
        JsonlPrompts(path="")


def mm_rlhf_row(**more):
    return {
        "prompt": "<image>\nwhat is it ?",
        "chosen": "red",
        "rejected": "green",
        "chosen_reason": "it is red",
        "rejected_reason": "it is not green",
        **more,
    }


def test_mm_rlhf_pairs_file(folder):
    path = write_lines(
        folder / "dpo_pairs.jsonl",
        [mm_rlhf_row(image="pictures/red.png"), mm_rlhf_row(image="pictures/blue.png")],
    )
    first, second = DatasetPrompts(schema="mm_rlhf", path=path).take(0, 2)
    assert (first.id, first.question, colors(first)) == ("mm_rlhf/0", "what is it ?", [RED])
    assert (second.id, colors(second)) == ("mm_rlhf/1", [BLUE])
    with pytest.raises(PromptsExhausted, match="2 prompts, 3"):
        list(DatasetPrompts(schema="mm_rlhf", path=path).take(1, 2))


def test_mm_rlhf_asks_a_question_once_for_all_of_its_pairs(folder):
    red, blue = (mm_rlhf_row(image=f"pictures/{color}.png") for color in ("red", "blue"))
    others = [{**red, "chosen": "dark red"}, {**red, "prompt": "<image>\nwhere ?"}, {**blue, "rejected": "black"}]
    path = write_lines(folder / "repeated.jsonl", [red, red, blue, *others])
    source = DatasetPrompts(schema="mm_rlhf", path=path)
    asked = [(prompt.id, prompt.question, colors(prompt)) for prompt in source.take(0, 3)]
    assert asked == [
        ("mm_rlhf/0", "what is it ?", [RED]),
        ("mm_rlhf/2", "what is it ?", [BLUE]),
        ("mm_rlhf/4", "where ?", [RED]),
    ]
    with pytest.raises(PromptsExhausted, match="3 prompts, 4"):
        list(source.take(3, 1))


def test_mm_rlhf_list_of_images(folder):
    path = write_lines(folder / "pairs.jsonl", [mm_rlhf_row(image=["pictures/red.png", "pictures/blue.png"])])
    assert colors(next(DatasetPrompts(schema="mm_rlhf", path=path).take(0, 1))) == [RED, BLUE]


def test_mm_rlhf_video_gives_ten_frames_spread_evenly(folder):
    (folder / "clip").mkdir()
    for number in range(19):
        (folder / "clip" / f"{number:03}.png").write_bytes(png((number, 0, 0)))
    path = write_lines(folder / "video.jsonl", [mm_rlhf_row(video="clip")])
    frames = colors(next(DatasetPrompts(schema="mm_rlhf", path=path).take(0, 1)))
    assert [red for red, _, _ in frames] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]


def test_images_may_lie_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    path = write_lines(elsewhere / "pairs.jsonl", [mm_rlhf_row(image="red.png")])
    source = DatasetPrompts(schema="mm_rlhf", path=path, images=str(folder / "pictures"))
    assert colors(next(source.take(0, 1))) == [RED]


def rlaif_v_row(number, color):
    return {
        "ds_name": "RLAIF-V",
        "image": {"bytes": png(color), "path": f"{number}.png"},
        "question": f"question {number}",
        "chosen": "a",
        "rejected": "b",
        "origin_dataset": "x",
        "origin_split": "{}",
        "idx": number,
        "image_path": f"{number}.png",
    }


def test_rlaif_v_asks_a_question_about_a_picture_once(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = [
        rlaif_v_row(0, RED),
        {**rlaif_v_row(0, RED), "chosen": "c"},
        {**rlaif_v_row(1, BLUE), "question": "question 0"},
    ]

    def asked(name, columns):
        table = datasets.Dataset.from_list([{key: row[key] for key in columns} for row in rows])
        table.to_parquet(str(tmp_path / name))
        source = DatasetPrompts(schema="rlaif_v", path=str(tmp_path / name))
        return [prompt.id for prompt in source.take(0, len(source._data.questions))]

    assert asked("whole.parquet", rows[0]) == ["rlaif_v/0", "rlaif_v/2"]
    assert asked("pathless.parquet", ["question", "image"]) == ["rlaif_v/0", "rlaif_v/1", "rlaif_v/2"]


def test_a_video_without_frames_is_named(folder):
    (folder / "clip").mkdir()
    (folder / "clip" / "000.bmp").write_bytes(b"")
    path = write_lines(folder / "video.jsonl", [mm_rlhf_row(video="clip")])
    with pytest.raises(ConfigError, match=r"row 0: image: no frames \(\.jpeg, \.jpg, \.png, \.webp\) in .*clip"):
        next(DatasetPrompts(schema="mm_rlhf", path=path).take(0, 1))


def rlhf_v_row(number, color):
    text = json.dumps({"question": f"question {number}", "chosen": "a", "rejected": "b"})
    row = {
        key: value for key, value in rlaif_v_row(number, color).items() if key not in ("question", "chosen", "rejected")
    }
    return {**row, "ds_name": "RLHF-V", "text": text}


@pytest.mark.parametrize("schema, make_row", [("rlaif_v", rlaif_v_row), ("rlhf_v", rlhf_v_row)])
@pytest.mark.parametrize("form", ["parquet", "folder", "saved"])
def test_image_bytes_in_parquet_and_saved_data_sets(tmp_path, monkeypatch, schema, make_row, form):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    table = datasets.Dataset.from_list([make_row(0, RED), make_row(1, BLUE)])
    if form == "saved":
        table = table.cast_column("image", datasets.Image())
        table.save_to_disk(str(tmp_path / "saved"))
        path = tmp_path / "saved"
    else:
        (tmp_path / "data").mkdir()
        table.to_parquet(str(tmp_path / "data" / "part-0.parquet"))
        path = tmp_path / "data" if form == "folder" else tmp_path / "data" / "part-0.parquet"
    first, second = DatasetPrompts(schema=schema, path=str(path)).take(0, 2)
    assert (first.id, first.question, colors(first)) == (f"{schema}/0", "question 0", [RED])
    assert (second.question, colors(second)) == ("question 1", [BLUE])


def test_a_row_of_another_schema_is_named(folder):
    path = write_lines(folder / "pairs.jsonl", [mm_rlhf_row(image="pictures/red.png")])
    with pytest.raises(ConfigError, match="row 0: not of schema rlhf_v"):
        list(DatasetPrompts(schema="rlhf_v", path=path).take(0, 1))


@pytest.mark.parametrize(
    "row, message",
    [
        ({"question": 3, "image": "pictures/red.png"}, "row 0: the question must be text, got 3"),
        ({"question": "what", "image": "pictures/gone.png"}, "row 0: image: .*gone.png"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(folder, row, message):
    path = write_lines(folder / "rows.jsonl", [row])
    with pytest.raises(ConfigError, match=message):
        list(DatasetPrompts(schema="rlaif_v", path=path).take(0, 1))


@pytest.mark.parametrize(
    "schema, name, message",
    [
        ("coco", "x.jsonl", "prompts.schema .* 'coco'"),
        ("mm_rlhf", "", "prompts.path"),
        ("mm_rlhf", "missing.jsonl", "missing.jsonl"),
        ("mm_rlhf", "data.csv", "data.csv"),
        ("mm_rlhf", "pictures", "without parquet"),
    ],
)
def test_wrong_data_sources_are_named(folder, schema, name, message):
    (folder / "data.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=message):
        list(DatasetPrompts(schema=schema, path=str(folder / name) if name else "").take(0, 1))


def loaded(picture, form="PNG", **options):
    """What becomes of a picture that is stored in a file."""
    stored = io.BytesIO()
    picture.save(stored, form, **options)
    [image] = load_images({"bytes": stored.getvalue()}, Path("nowhere"))
    return image.pixels


def test_a_photograph_that_was_taken_upright_stands_upright():
    picture = PillowImage.new("RGB", (8, 4), RED)
    picture.paste(BLUE, (0, 0, 4, 4))
    exif = PillowImage.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    pixels = loaded(picture, exif=exif)
    assert pixels.shape == (8, 4, 3)
    assert tuple(pixels[0, 0]) == BLUE and tuple(pixels[7, 0]) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    picture = PillowImage.new("RGBA", (2, 1), (0, 0, 0, 0))
    picture.putpixel((0, 0), (0, 0, 0, 255))
    assert loaded(picture.convert(mode)).tolist() == [[[0, 0, 0], [255, 255, 255]]]


@pytest.mark.parametrize(
    ("levels", "form", "expected"),
    [
        (np.uint16([[0, 257 * 100, 65535]]), "PNG", [0, 100, 255]),
        (np.int32([[-5, 15, 95]]), "TIFF", [0, 51, 255]),
        (np.float32([[0.0, 0.2, 1.0]]), "TIFF", [0, 51, 255]),
        (np.float32([[0.5, 0.5]]), "TIFF", [0, 0]),
    ],
)
def test_wide_gray_levels_keep_their_differences(levels, form, expected):
    pixels = loaded(PillowImage.fromarray(levels), form)
    assert pixels[0].tolist() == [[value] * 3 for value in expected]


def test_a_picture_too_large_to_be_decoded_is_named_with_its_line(folder, monkeypatch):
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 1)
    (folder / "large.jsonl").write_text('{"id": "a", "prompt": "what", "image": "pictures/red.png"}\n')
    with pytest.raises(ConfigError, match=r"large\.jsonl:1: image: Image size"):
        list(JsonlPrompts(path=str(folder / "large.jsonl")).take(0, 1))


def test_stored_images_of_every_kind(folder):
    picture = PillowImage.new("L", (2, 2), 255)
    stored = [
        "pictures/red.png",
        {"bytes": png(BLUE), "path": None},
        {"bytes": None, "path": "pictures/blue.png"},
        picture,
    ]
    loaded = load_images(stored, folder)
    assert [tuple(image.pixels[0, 0].tolist()) for image in loaded] == [RED, BLUE, BLUE, (255, 255, 255)]
    assert all(image.pixels.dtype == np.uint8 for image in loaded)
    assert load_images(None, folder) == () == load_images("", folder)
    with pytest.raises(FileNotFoundError):
        load_images("pictures/green.png", folder)
    with pytest.raises(ValueError, match="int"):
        load_images(3, folder)
    with pytest.raises(ValueError, match="bytes or a path"):
        load_images({"bytes": None, "path": None}, folder)


def test_further_turns_of_the_user_come_from_the_script(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": "Hi", "script": ["Are you sure?", "Why?"]}\n{"id": "b", "prompt": "Hi"}\n')
    first, second = JsonlPrompts(path=str(path)).take(0, 2)
    assert [(turn.role, turn.text) for turn in first.script] == [("user", "Are you sure?"), ("user", "Why?")]
    assert second.script == ()
    path.write_text('{"id": "a", "prompt": "Hi", "script": "Why?"}\n')
    with pytest.raises(ConfigError, match=r"prompts.jsonl:1: script must be a list of texts, got 'Why\?'"):
        list(JsonlPrompts(path=str(path)).take(0, 1))
