"""Examples that do not come from the round: what is brought, where it stands, what it says, and which mistakes are named."""

import io
import json
import math

import pytest
from PIL import Image as PillowImage

from rlsys import registry
from rlsys.app import config as configuration
from rlsys.app.align import dry_run
from rlsys.app.plan import check
from rlsys.errors import ConfigError
from rlsys.journal import Journal, Past
from rlsys.placement.machine import Machine
from rlsys.records import NO_ROUND, PreferencePair, Replayed
from rlsys.replay.corrections import Corrections
from rlsys.replay.offline_pairs import OfflinePairs
from tests.fakes import make_group, make_pair, make_plan, make_prompt

registry.discover()
RED = (255, 0, 0)


def png(color):
    stored = io.BytesIO()
    PillowImage.new("RGB", (4, 2), color).save(stored, "PNG")
    return stored.getvalue()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mm_rlhf_rows(count):
    return [{"prompt": f"<image>\nq{n} ?", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]


def offline(folder, *, rows=10, **options):
    path = write_lines(folder / "pairs.jsonl", mm_rlhf_rows(rows) if isinstance(rows, int) else rows)
    return OfflinePairs(**{"schema": "mm_rlhf", "path": path, "shuffle": False, **options})


class Counted(Past):
    """A past of which only the counts are known."""

    def __init__(self, **counts):
        super().__init__(journal=None, round=1, kind=PreferencePair, counts={0: counts})


def mixed(replay, num_own, past=None):
    """`o` for the round's own examples, the chosen text's number for others."""
    own = (make_pair() for _ in range(num_own))
    found = replay.mix(own, make_plan(), past or Counted())
    return " ".join(e.example.chosen.text.split()[-1] if isinstance(e, Replayed) else "o" for e in found)


@pytest.mark.parametrize(
    ("options", "num_own", "expected"),
    [
        ({"share": 0.25}, 7, "o o o 0 o o o 1 o"),
        ({"share": 0.1}, 10, "o o o o o o o o o 0 o"),
        ({"share": 0.5}, 3, "o 0 o 1 o 2"),
        ({"share": 0.75}, 2, "o 0 1 2 o 3 4 5"),
        ({"share": 0.4}, 6, "o o 0 o 1 o o 2 o 3"),
        ({"share": 0.0}, 3, "o o o"),
        ({"share": 0.5}, 0, ""),
        ({"share": 0.5, "minimum": 2}, 0, "0 1"),
        ({"share": 0.25, "minimum": 3}, 4, "o o o 0 o 1 2"),
        ({"share": 0.5, "minimum": 1}, 2, "o 0 o 1"),
    ],
)
def test_a_share_of_the_examples_is_spread_evenly_among_the_rounds_own(tmp_path, options, num_own, expected):
    assert mixed(offline(tmp_path, **options), num_own) == expected


def test_every_round_goes_on_where_the_one_before_it_ended(tmp_path):
    replay = offline(tmp_path, rows=4)
    assert mixed(replay, 3, Counted(mm_rlhf=3)) == "o 3 o 0 o 1"
    assert mixed(replay, 1, Counted(other=3)) == "o 0"


def test_every_pass_has_an_order_of_its_own_that_the_seed_decides(tmp_path):
    def passes(seed):
        words = mixed(offline(tmp_path, rows=6, shuffle=True, share=0.5, seed=seed), 12).split()[1::2]
        return words[:6], words[6:]

    first, second = passes(0)
    assert sorted(first) == sorted(second) == list("012345")
    assert first != second
    assert passes(0) == (first, second) and passes(1) != (first, second)
    going_on = mixed(offline(tmp_path, rows=6, shuffle=True, share=0.5), 4, Counted(mm_rlhf=4)).split()[1::2]
    assert going_on == first[4:] + second[:2]


def brought(replay, past=None):
    """One pass of the collection."""
    return list(replay.pairs(past or Counted()))


def test_mm_rlhf_pairs_have_the_margins_of_their_rewards(tmp_path):
    (tmp_path / "red.png").write_bytes(png(RED))
    pair = {"prompt": "<image>\nwhat ?", "chosen": "a dog", "rejected": "a cat", "image": "red.png"}
    scored = {**pair, "rewards": [2.5, 0.5], "ls_factor": 0.5}
    other = {**pair, "rejected": "a cow"}
    rows = [
        scored,
        {**other, "rewards": [1.0, 3.0]},
        {**other, "rewards": None, "ls_factor": 0.5},
        {**pair, "is_tie": True},
        {**pair, "rejected": "a dog"},
        other,
    ]
    replay = offline(tmp_path, rows=rows, margin=2.0)
    replay.check()
    first, *others = brought(replay)
    assert (first.prompt.id, first.prompt.question, first.round) == ("mm_rlhf/0", "what ?", NO_ROUND)
    assert first.prompt.images[0].pixels.shape == (2, 4, 3)
    assert (first.chosen.text, first.rejected.text) == ("a dog", "a cat")
    assert (first.chosen.sampled, first.chosen.token_ids.size, first.prompt_token_ids.size) == (None, 0, 0)
    assert (first.chosen_score, first.rejected_score, first.margin) == (2.5, 0.5, 2.0)
    assert first.beta_scale == pytest.approx(1 + 0.5 * (1 - math.exp(-1)))  # margin 2, k 0.5
    found = [(p.prompt.id, p.chosen_score, p.rejected_score, p.margin, p.beta_scale) for p in others]
    assert found == [("mm_rlhf/0", 2.0, 0.0, 2.0, scale) for scale in (1.0, 1.25, 1.0)]


@pytest.mark.parametrize("schema", ["rlaif_v", "rlhf_v"])
def test_pairs_of_parquet_files_have_their_images_and_the_default_margin(tmp_path, monkeypatch, schema):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = [{"question": "what ?", "chosen": f"good {n}", "rejected": "bad"} for n in range(2)]
    shared = {
        "ds_name": "x",
        "image": {"bytes": png(RED), "path": "0.png"},
        "origin_dataset": "y",
        "origin_split": "{}",
    }
    shared["image_path"] = "0.png"
    released = texts if schema == "rlaif_v" else [{"text": json.dumps(text)} for text in texts]
    rows = [{**shared, **row, "idx": number} for number, row in enumerate(released)]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "0.parquet"))
    replay = OfflinePairs(schema=schema, path=str(tmp_path / "0.parquet"))
    replay.check()
    first, second = brought(replay)
    assert (first.prompt.question, first.chosen.text, first.rejected.text) == ("what ?", "good 0", "bad")
    assert tuple(first.prompt.images[0].pixels[0, 0]) == RED
    assert (first.margin, first.beta_scale) == (1.0, 1.0)
    # RLHF-V has one row per question; RLAIF-V asks this one twice.
    assert second.prompt.id == {"rlaif_v": "rlaif_v/0", "rlhf_v": "rlhf_v/1"}[schema]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"chosen": 3}, r"row 0: the chosen response must be text, got 3"),
        ({"rejected": None}, r"row 0: the rejected response must be text, got None"),
        ({"image": "gone.png"}, r"row 0: image: there is no '.*gone\.png'"),
        ({"video": "gone"}, r"row 0: video: there is no '.*gone'"),
        ({"ls_factor": 1.5}, r"row 0: not of schema mm_rlhf: .*ls_factor must be in \[0, 1\], got 1\.5"),
        ({"rewards": [1.0]}, r"row 0: not of schema mm_rlhf"),
    ],
)
def test_an_unusable_row_is_named_before_anything_starts(tmp_path, row, message):
    (first,) = mm_rlhf_rows(1)
    with pytest.raises(ConfigError, match=message):
        offline(tmp_path, rows=[first | row]).check()


def test_a_set_without_pairs_is_named(tmp_path):
    tie = {**mm_rlhf_rows(1)[0], "is_tie": True}
    with pytest.raises(
        ConfigError, match=r"replay\.path has no pairs of preferred and other responses: '.*pairs\.jsonl'"
    ):
        offline(tmp_path, rows=[tie]).check()


def test_corrections_say_what_was_asked_or_name_a_prompt_of_an_earlier_round(tmp_path):
    (tmp_path / "red.png").write_bytes(png(RED))
    asked = {"prompt": "what ?", "image": "red.png"}
    path = write_lines(
        tmp_path / "corrections.jsonl",
        [
            {**asked, "response": "a red dog", "correction": "a brown dog"},
            {"id": "p7", "response": "two cats", "correction": "one cat"},
        ],
    )
    journal = Journal(tmp_path / "run" / "journal")
    journal.begin(0)
    journal.append(0, make_group(prompt=make_prompt("p7")))
    past = Past(journal=journal, round=1, kind=PreferencePair)
    first, second = brought(Corrections(path=path, margin=0.5), past)
    assert (first.prompt.id, first.prompt.question, len(first.prompt.images)) == ("corrections/1", "what ?", 1)
    assert (first.chosen.text, first.rejected.text, first.margin) == ("a brown dog", "a red dog", 0.5)
    assert (second.prompt, second.chosen.text, second.round) == (make_prompt("p7"), "one cat", NO_ROUND)
    of_another_run = Corrections(path=path, run=str(tmp_path / "run"))
    of_another_run.check()
    assert brought(of_another_run, Counted())[1].prompt == make_prompt("p7")
    with pytest.raises(ConfigError, match=r"corrections\.jsonl:2: no prompt 'p7' was asked in the 0 rounds before"):
        brought(Corrections(path=path), Past(journal=journal, round=0, kind=PreferencePair))


def test_corrections_may_still_have_to_be_written(tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    assert mixed(Corrections(path=str(tmp_path / "none.jsonl"), minimum=3), 2) == "o o"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "?", "response": "a"}, "bad.jsonl:1: every line must have a text `correction`"),
        ({"prompt": "?", "correction": "a"}, "bad.jsonl:1: every line must have a text `response`"),
        ({"response": "a", "correction": "b"}, "bad.jsonl:1: every line must have `prompt`, `turns`, or the `id`"),
        ({"prompt": "?", "response": "a", "correction": "a"}, "bad.jsonl:1: the correction is the response as it was"),
        ({"prompt": "?", "image": "gone.png", "response": "a", "correction": "b"}, "bad.jsonl:1: image: there is no"),
        ({"prompt": "?", "turns": [], "response": "a", "correction": "b"}, "bad.jsonl:1: a line must have either"),
        ([1], "bad.jsonl:1: every line must be an object, got list"),
    ],
)
def test_corrections_say_which_line_is_wrong(tmp_path, line, message):
    with pytest.raises(ConfigError, match=message):
        Corrections(path=write_lines(tmp_path / "bad.jsonl", [line])).check()


def test_several_replays_follow_each_other_and_are_counted_apart(tmp_path):
    path = write_lines(tmp_path / "pairs.jsonl", mm_rlhf_rows(10))
    two = {"name": "offline_pairs", "schema": "mm_rlhf", "path": path, "share": 0.5, "shuffle": False}
    journal = Journal(tmp_path / "journal")
    journal.begin(0)
    journal.append(0, make_pair(), make_pair())
    past = Past(journal=journal, round=1, kind=PreferencePair)

    def found(*parts):
        mix = registry.replay.make("combined", parts=list(parts)).mix(iter([make_pair()]), make_plan(round=1), past)
        return " ".join(e.source if isinstance(e, Replayed) else "o" for e in mix)

    assert found({"name": "accumulated"}, two) == "o mm_rlhf earlier_rounds mm_rlhf earlier_rounds mm_rlhf"
    assert found(two, {"name": "accumulated"}) == "o mm_rlhf earlier_rounds earlier_rounds"
    assert found(two, {**two, "label": "mine"}) == "o mine mm_rlhf mine"


MISTAKES = [
    (["replay=nothing"], "there are: accumulated, combined, corrections, none, offline_pairs"),
    (["replay=offline_pairs"], "missing mandatory value"),
    (["replay=offline_pairs", "replay.schema=coco", "replay.path=x"], "replay.schema must be one of mm_rlhf, rlhf_v"),
    (
        ["replay=offline_pairs", "replay.schema=rlhf_v", "replay.path=''"],
        "replay.path must name a file or folder, got ''",
    ),
    (["replay=corrections", "replay.path=x", "replay.share=1"], "replay.share must be in [0, 1), got 1.0"),
    (["replay=corrections", "replay.path=x", "replay.share=-0.1"], "replay.share must be in [0, 1), got -0.1"),
    (["replay=corrections", "replay.path=x", "replay.minimum=-1"], "replay.minimum must be at least 0, got -1"),
    (["replay=corrections", "replay.path=x", "replay.margin=0"], "replay.margin must be > 0, got 0.0"),
    (["replay=combined", "replay.parts=[{share: 1}]"], "replay.parts.0 must name a replay"),
    (
        ["replay=combined", "replay.parts=[{name: accumulated},{name: accumulated}]"],
        "more than one brings 'earlier_rounds'",
    ),
    (["replay=combined", "replay.parts=[{name: offline_pairs}]"], "missing mandatory value: schema"),
    (["schedule.phases=[{replay: nothing}]"], "no replay named 'nothing'"),
    (["schedule.phases=[{replay: {share: 0.5}}]"], "replay NoReplay has no option 'share'"),
    (["schedule.phases=[{data: accumulated}]"], "schedule.phases.0: no key 'data'"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_gets_one_line(words, message):
    with pytest.raises(ConfigError) as caught:
        configuration.load(words)
    assert message.lower() in str(caught.value).lower() and "\n" not in str(caught.value)


def test_what_a_replay_brings_must_be_what_the_objective_learns_from(monkeypatch):
    monkeypatch.setattr(registry.replay["corrections"], "produces", str)
    with pytest.raises(
        ConfigError, match="objective=DPO learns from PreferencePair records, and replay=Corrections brings str"
    ):
        configuration.load(["replay=corrections", "replay.path=x"])


def test_what_any_phase_would_bring_is_looked_for_before_the_run_starts(tmp_path):
    machine = Machine(num_cpus=2, num_gpus=0, memory_gib=64)
    write_lines(tmp_path / "good.jsonl", [{"prompt": "?", "response": "a", "correction": "b"}])
    words = [f"replay={{name: corrections, path: {tmp_path}/{name}.jsonl}}" for name in ("good", "gone")]
    good, gone = (f"schedule.phases=[{{rounds: 1}},{{rounds: 1, {word.replace('=', ': ', 1)}}}]" for word in words)
    check(configuration.load(["preset=scenes_ci", good])[0], machine)
    with pytest.raises(ConfigError, match=r"replay\.path must name a file, got '.*gone\.jsonl'"):
        check(configuration.load(["preset=scenes_ci", gone])[0], machine)


def test_iterative_dpo_trains_on_all_rounds_so_far_and_phases_may_choose():
    config, _ = configuration.load(["method=iterative_dpo"])
    assert type(config.replay) is registry.replay["accumulated"]
    assert type(configuration.load([])[0].replay) is registry.replay["none"]
    phases = "schedule.phases=[{rounds: 1}, {rounds: 1, replay: {name: corrections, path: x, share: 0.2}}]"
    lines = dry_run(configuration.load(["method=iterative_dpo", phases])[0]).splitlines()[-2:]
    assert "Accumulated()" in lines[0] and "Corrections(share=0.2," in lines[1]
