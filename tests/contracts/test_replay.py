"""What every replay in the registry promises."""

import json

import pytest

from rlsys import registry
from rlsys.contracts import Replay
from rlsys.journal import Journal, Past
from rlsys.records import PreferencePair, Replayed
from tests.fakes import make_pair, make_plan

registry.discover()


def options(name, folder):
    """Of a replay that has something to bring."""
    offline = {"schema": "mm_rlhf", "path": str(folder / "pairs.jsonl")}
    rows = [{"prompt": f"question {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(3)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"prompt": f"question {n}", "response": f"bad {n}", "correction": f"good {n}"} for n in range(3)]
    (folder / "corrections.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "offline_pairs": offline,
        "corrections": {"path": str(folder / "corrections.jsonl")},
        "combined": {"parts": [{"name": "accumulated"}, {"name": "offline_pairs", **offline}]},
    }.get(name, {})


@pytest.mark.parametrize("name", sorted(registry.replay))
def test_replay(name, tmp_path):
    replay = registry.replay.make(name, **options(name, tmp_path))
    assert isinstance(replay, Replay)
    assert replay.produces in (None, PreferencePair)
    replay.check()

    journal = Journal(tmp_path / "journal")
    journal.begin(0)
    journal.append(0, make_pair("earlier"))
    past = Past(journal=journal, round=1, kind=PreferencePair)
    own = [make_pair(f"own {number}", round=1) for number in range(6)]

    def mixed():
        return list(replay.mix(iter(own), make_plan(round=1), past))

    first = mixed()
    assert [example for example in first if not isinstance(example, Replayed)] == own, "all of the round's, in order"
    brought = [example for example in first if isinstance(example, Replayed)]
    assert {example.source for example in brought} == set(replay.sources)
    assert all(isinstance(example.example, PreferencePair) and example.example.round != 1 for example in brought)
    assert mixed() == first, "the same past gives the same mix"


@pytest.mark.parametrize("name", sorted(registry.replay))
def test_the_rounds_own_examples_are_handed_on_as_they_come(name, tmp_path):
    replay = registry.replay.make(name, **options(name, tmp_path))
    taken = []

    def own():
        for number in range(3):
            taken.append(number)
            yield make_pair(f"own {number}")

    past = Past(journal=Journal(tmp_path / "journal"), round=0, kind=PreferencePair)
    mixed = replay.mix(own(), make_plan(), past)
    assert taken == [], "nothing is asked for before the learner asks"
    next(mixed)
    assert taken == [0]
