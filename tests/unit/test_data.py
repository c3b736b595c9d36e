"""Sources of training examples: rows that are written down, and what becomes of them."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from rlsys import registry
from rlsys.data.base import Examples
from rlsys.data.critiques import JsonlCritiques
from rlsys.data.jsonl import JsonlDemonstrations
from rlsys.data.preferences import JsonlPreferences
from rlsys.data.scenes_critiques import ScenesCritiques
from rlsys.data.scenes_demonstrations import ScenesDemonstrations
from rlsys.data.text import Text, pieces
from rlsys.errors import ConfigError
from rlsys.records import CritiquePair
from rlsys.worlds.scenes.source import demonstrations
from tests.fakes import make_group


def written(folder, *rows, name="rows.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def all_of(data):
    return list(data.examples(None, None))


def said(turns):
    return [(turn.role, turn.text) for turn in turns]


def test_demonstrations_are_prompts_and_responses_or_messages(tmp_path):
    Image.new("RGB", (4, 2), "red").save(tmp_path / "one.png")
    path = written(
        tmp_path,
        {"prompt": "What colour?", "response": "Red.", "image": "one.png"},
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hello!"},
                {"role": "assistant", "content": "Hello."},
                {"role": "user", "content": "And now?"},
                {"role": "assistant", "content": "Good bye."},
            ]
        },
    )
    data = JsonlDemonstrations(path=path)
    first, second = all_of(data)
    assert data.count() == 2
    assert (said(first.prompt.turns), first.response.text) == ([("user", "What colour?")], "Red.")
    np.testing.assert_array_equal(first.prompt.images[0].pixels, np.full((2, 4, 3), [255, 0, 0]))
    assert said(second.prompt.turns) == [
        ("system", "Be brief."),
        ("user", "Hello!"),
        ("assistant", "Hello."),
        ("user", "And now?"),
    ]
    assert (second.response.text, second.prompt.images) == ("Good bye.", ())
    assert first.prompt.id != second.prompt.id


def test_preferences_have_a_margin_that_scales_their_beta(tmp_path):
    path = written(
        tmp_path,
        {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven.", "margin": 2.0},
        {"prompt": [{"role": "user", "content": "And?"}], "chosen": "Blue.", "rejected": "No."},
    )
    first, second = all_of(JsonlPreferences(path=path, scale_w=0.5, scale_k=0.5))
    assert (first.chosen.text, first.rejected.text, first.margin) == ("Red.", "Seven.", 2.0)
    assert first.beta_scale == pytest.approx(1 + 0.5 * (1 - np.exp(-1)))
    assert (second.prompt.question, second.margin) == ("And?", 1.0)
    assert len(first.prompt_token_ids) == len(first.chosen.token_ids) == 0 and first.chosen.sampled is None
    assert all_of(JsonlPreferences(path=path))[0].beta_scale == 1.0


def test_judged_pairs_are_shown_as_the_judge_will_see_them(tmp_path):
    row = {"prompt": "How many cats?", "chosen": "Two.", "rejected": "Nine."}
    path = written(tmp_path, {**row, "chosen_critique": "Right.", "rejected_critique": "Wrong."}, row)
    first, second = all_of(JsonlCritiques(path=path, template="Q: {question} A: {answer}"))
    shown = [prompt.question for prompt in (first.chosen_prompt, first.rejected_prompt)]
    assert shown == ["Q: How many cats? A: Two.", "Q: How many cats? A: Nine."]
    assert (first.chosen_critique, first.rejected_critique) == ("Right.", "Wrong.")
    assert (second.chosen_critique, second.rejected_critique) == ("", "")
    with pytest.raises(ConfigError, match=r"data\.template must contain \{answer\}, got 'Q: \{question\}'"):
        JsonlCritiques(path=path, template="Q: {question}")
    path = written(tmp_path, {**row, "chosen_critique": "Right."})
    with pytest.raises(ConfigError, match=r"rows\.jsonl:1: a row must have both chosen_critique and rejected_critique"):
        JsonlCritiques(path=path, template="{question}{answer}").count()


def test_text_is_whole_documents_or_pieces_of_them_after_no_prompt(tmp_path):
    path = written(tmp_path, {"text": "one two\n\nthree"}, {"text": "four"})
    assert [(e.prompt.turns, e.response.text) for e in all_of(Text(path=path, max_characters=8))] == [
        ((), "one two"),
        ((), "three"),
        ((), "four"),
    ]
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "b.txt").write_text("second\n")
    (tmp_path / "book" / "a.md").write_text("first\n\nstill first\n")
    (tmp_path / "book" / "c.png").write_bytes(b"\xff")
    assert [e.response.text for e in all_of(Text(path=str(tmp_path / "book")))] == ["first\n\nstill first", "second"]
    assert [e.response.text for e in all_of(Text(path=str(tmp_path / "book" / "b.txt")))] == ["second"]


@pytest.mark.parametrize(
    ("document", "limit", "expected"),
    [
        ("a b\n\nc d\n \ne f", 9, ["a b\n\nc d", "e f"]),
        ("one two three", 7, ["one two", "three"]),
        ("abcdefgh ij", 3, ["abc", "def", "gh", "ij"]),
        ("x\n\nlong words here\n\ny", 6, ["x", "long", "words", "here", "y"]),
        ("  \n\n ", 3, []),
    ],
)
def test_documents_are_cut_between_paragraphs_then_between_words(document, limit, expected):
    assert pieces(document, limit) == expected


MESSAGES = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
MISTAKES = [
    ("jsonl", {"prompt": "a"}, "rows.jsonl:2: response must be a text that is not empty, got None"),
    ("jsonl", {"prompt": "a", "response": ""}, "rows.jsonl:2: response must be a text that is not empty, got ''"),
    ("jsonl", {"response": "a"}, "rows.jsonl:2: a row must have either messages, or a prompt and a response"),
    ("jsonl", {"prompt": "a", "response": "b", "messages": MESSAGES}, "rows.jsonl:2: a row must have either messages"),
    ("jsonl", {"messages": MESSAGES[:1]}, "rows.jsonl:2: messages must end with the user's and the assistant's"),
    (
        "jsonl",
        {"messages": [{"role": "bot", "content": "a"}]},
        "each with a role (system, user, assistant) and a content",
    ),
    ("jsonl", {"messages": []}, "rows.jsonl:2: messages must be a list of messages"),
    ("jsonl", {"prompt": "a", "response": "\ud800"}, "rows.jsonl:2: text: 'utf-8' codec can't encode"),
    ("jsonl", {"prompt": "a", "response": "b", "image": "not.png"}, "rows.jsonl:2: image: there is no file"),
    ("jsonl", [1], "rows.jsonl:2: every line must be an object, got list"),
    ("preferences", {"prompt": "a", "chosen": "b"}, "rows.jsonl:2: rejected must be a text that is not empty"),
    ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "rows.jsonl:2: chosen and rejected are the same"),
    (
        "preferences",
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 0},
        "margin must be a number above 0, got 0",
    ),
    (
        "preferences",
        {"prompt": [MESSAGES[1]], "chosen": "b", "rejected": "c"},
        "prompt must end with the user's message",
    ),
    ("text", {"txt": "a"}, "rows.jsonl:2: text must be a text that is not empty, got None"),
]
GOOD = {
    "jsonl": {"prompt": "a", "response": "b"},
    "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "text": {"text": "a"},
}


@pytest.mark.parametrize(("kind", "row", "message"), MISTAKES)
def test_a_mistake_in_any_row_is_said_before_anything_is_trained(tmp_path, kind, row, message):
    registry.discover()
    data = registry.data.make(kind, path=written(tmp_path, GOOD[kind], row))
    with pytest.raises(ConfigError) as caught:
        data.count()
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["jsonl", "preferences", "text"])
def test_a_source_that_is_not_there_or_empty_is_one_line(tmp_path, kind):
    registry.discover()
    with pytest.raises(ConfigError, match=r"data\.path must name a file( or folder)?, got"):
        registry.data.make(kind, path=str(tmp_path / "absent")).count()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(ConfigError, match=r"data\.path: .* has no (rows|text)"):
        registry.data.make(kind, path=str(tmp_path / "empty.jsonl")).count()


def test_lines_that_are_no_json_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "a", "response": "b"}\n\n{"prompt"\n')
    with pytest.raises(ConfigError, match=r"a\.jsonl:3: not JSON"):
        JsonlDemonstrations(path=str(tmp_path / "a.jsonl")).count()
    (tmp_path / "b.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ConfigError, match=r"b\.jsonl:1: not UTF-8"):
        JsonlDemonstrations(path=str(tmp_path / "b.jsonl")).count()


def test_data_is_known_by_its_content_wherever_it_lies(tmp_path):
    Image.new("RGB", (4, 2)).save(tmp_path / "one.png")
    row = {"prompt": "a", "response": "b", "image": "one.png"}
    identity = JsonlDemonstrations(path=written(tmp_path, row)).identity()
    assert identity == JsonlDemonstrations(path=written(tmp_path, row, name="other.jsonl")).identity()
    assert identity != JsonlDemonstrations(path=written(tmp_path, {**row, "response": "c"})).identity()
    os.utime(tmp_path / "one.png", ns=(1, 1))
    assert identity != JsonlDemonstrations(path=written(tmp_path, row)).identity()
    text = written(tmp_path, {"text": "one two"})
    assert Text(path=text).identity() != Text(path=text, max_characters=4).identity()
    assert ScenesDemonstrations().identity() == ScenesDemonstrations().identity()
    assert ScenesDemonstrations(partner_rate=0.1).identity() != ScenesDemonstrations().identity()


def test_examples_are_read_when_they_are_asked_for():
    read = []
    examples = Examples(5, lambda index: read.append(index) or index * 10)
    assert (len(examples), examples[1], examples[-1], examples[1:3]) == (5, 10, 40, [10, 20])
    assert read == [1, 4, 1, 2]
    assert list(examples) == [0, 10, 20, 30, 40]
    with pytest.raises(IndexError):
        examples[5]


def test_demonstrations_of_the_scenes_are_those_of_the_world_in_its_order():
    found = ScenesDemonstrations(num_examples=20, partner_rate=0.3)
    expected = list(demonstrations(20, partner_rate=0.3))
    assert (found.count(), all_of(found)) == (20, expected)


class Responds:
    """Tools that answer every prompt with the same two responses."""

    seed = 4

    def model(self, name):
        return f"folder of {name}"

    def respond(self, model, prompts, **options):
        self.asked = model, len(prompts), options
        for prompt in prompts:
            yield make_group(texts=("there is a red circle .", "there is nothing ."), prompt=prompt)


def test_critiques_are_of_the_responses_of_the_model_that_is_named():
    data = ScenesCritiques(engine="engine", num_prompts=3, num_candidates=2, max_tokens=9, disturbed_rate=0.0)
    tools = Responds()
    pairs = data.examples("start", tools)
    options = {"engine": "engine", "batch": 32, "num_candidates": 2, "max_tokens": 9}
    assert tools.asked == ("start", 3, options)
    assert pairs and all(isinstance(pair, CritiquePair) for pair in pairs)
    assert all(pair.chosen_prompt.id.startswith("scenes/annotated/") for pair in pairs)
    assert (data.count(), data.models()) == (None, ())
    named = ScenesCritiques(engine="engine", num_prompts=3, model="stage:policy")
    named.examples("start", tools)
    assert tools.asked[0] == "folder of stage:policy" and named.models() == ("stage:policy",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 0}, r"data\.batch must be at least 1, got 0"),
        ({"num_shortened": -1}, r"data\.num_shortened must be at least 0, got -1"),
        ({"disturbed_rate": 2}, r"data\.disturbed_rate must be in \[0, 1\], got 2"),
    ],
)
def test_options_of_critiques_are_checked(options, message):
    with pytest.raises(ConfigError, match=message):
        ScenesCritiques(**options)


def test_every_source_says_what_it_produces():
    registry.discover()
    assert sorted(registry.data) == [
        *("critiques", "jsonl", "preferences", "scenes_critiques", "scenes_demonstrations", "text")
    ]
    assert all(isinstance(source.produces, type) for source in registry.data.values())
