"""RunComponents of a run that start while others work."""

import threading
from concurrent.futures import CancelledError

import pytest

from rlsys.app.starting import DeferredStart, start_in_order
from rlsys.placement import Placement


class Part:
    name = "part"
    closed = False

    def close(self):
        self.closed = True


def never(own):
    raise AssertionError("started")


ON_ONE = {"one": [Placement(cores=(0,))], "two": [Placement(cores=(0,))]}


def test_a_part_is_waited_for_when_it_is_used():
    may_start, part = threading.Event(), Part()

    def start():
        may_start.wait(10)
        return part

    later = DeferredStart(start)
    may_start.set()
    assert later.name == "part"
    later.close()
    assert part.closed


def test_a_part_that_failed_says_so_when_it_is_used_and_closes_in_silence():
    def start():
        raise OSError("no disk")

    later = DeferredStart(start)
    with pytest.raises(OSError, match="no disk"):
        later.name  # noqa: B018
    later.close()


def test_those_that_would_start_on_one_core_start_one_after_the_other():
    may_end, begun = threading.Event(), []

    def judge():
        begun.append("judge")
        may_end.wait(10)
        return Part()

    def at_once(name):
        begun.append(name)
        return Part()

    rollout, _, learner, other = start_in_order(
        (lambda own: at_once("rollout"), "rollout"),
        (lambda own: judge(), "judge"),
        (lambda own: at_once("learner"), "learner"),
        (lambda own: at_once("other"), "other"),
        placements={
            "rollout": [Placement(cores=(0,))],
            "judge": [Placement(cores=(0,), start_cores=(1,))],
            "learner": [Placement(cores=(1, 2))],
        },
    )
    assert (rollout.name, other.name) == ("part", "part")
    assert sorted(begun) == ["judge", "other", "rollout"]
    may_end.set()
    assert learner.name == "part" and begun[-1] == "learner"


def test_a_part_that_is_closed_before_its_turn_does_not_start():
    may_end, ended = threading.Event(), threading.Event()

    first, second = start_in_order((lambda own: may_end.wait(10) and Part(), "one"), (never, "two"), placements=ON_ONE)
    closing = threading.Thread(target=lambda: (second.close(), ended.set()))
    closing.start()
    assert not ended.wait(0.05)
    may_end.set()
    closing.join(10)
    assert ended.is_set()
    with pytest.raises(CancelledError):
        second.name  # noqa: B018
    first.close()


def test_a_part_does_not_start_after_one_that_failed():
    def fails(own):
        raise OSError("no disk")

    parts = start_in_order((fails, "one"), (never, "two"), placements=ON_ONE)
    for part in parts:
        with pytest.raises(OSError, match="no disk"):
            part.name  # noqa: B018
        part.close()
