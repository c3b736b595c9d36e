"""Failures are counted for the round they belong to."""

import pytest

from actors.counts import Counts
from actors.partial import partial_results
from rlsys.records import Prompt

RECORD = Prompt(id="p", turns=())


def failed(counts, round):
    found = counts.of(round, 1)
    return found["failed_workers"], found["failed_held_out"]


def test_what_fails_in_no_round_belongs_to_the_one_that_is_counted_next():
    counts = Counts()
    with counts.working_on(3):  # ahead of round 2
        counts.death("rollout-0")
    counts.death("rollout-1")  # in a weight update
    counts.missed(4)  # in the evaluation of round 2
    assert failed(counts, 2) == (1, 4)
    assert failed(counts, 2) == (1, 4)
    assert failed(counts, 3) == (1, 0)


def test_a_round_that_fails_is_not_worked_on_any_more():
    counts = Counts()
    with pytest.raises(KeyError), counts.working_on(3):
        raise KeyError
    counts.death("rollout-0")
    assert failed(counts, 4) == (1, 0) and failed(counts, 3) == (0, 0)


def test_seconds_are_the_mean_over_workers():
    counts = Counts()
    counts.seconds[1] += 6.0
    assert counts.of(1, 4)["seconds"] == 1.5 and counts.of(2, 4)["seconds"] == 0.0


def test_what_a_person_should_know_is_told_a_few_times(capsys):
    counts = Counts("rollout")
    counts.tell([f"prompt {number}" for number in range(4)])
    counts.tell(["prompt 4", "prompt 5", "prompt 6"])
    counts.tell([])
    assert capsys.readouterr().err.splitlines() == [
        *(f"rollout: prompt {number}" for number in range(5)),
        "rollout: more like this is counted, and not shown",
    ]


def test_notes_go_with_the_next_part_once():
    notes = []

    def ready():
        notes.append("first")
        yield [(RECORD,)]
        yield [(RECORD,)]
        notes.append("second")
        yield [(RECORD,)]

    assert [part.notes for part in partial_results(ready(), skip=0, notes=notes)] == [("first",), (), ("second",)]
    assert notes == []
