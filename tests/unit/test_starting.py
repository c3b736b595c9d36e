"""Parts of a run that start while others work."""

import threading

import pytest

from rlsys.app.starting import Later


class Part:
    name = "part"
    closed = False

    def close(self):
        self.closed = True


def test_a_part_is_waited_for_when_it_is_used():
    may_start, part = threading.Event(), Part()

    def start():
        may_start.wait(10)
        return part

    later = Later(start)
    may_start.set()
    assert later.name == "part"
    later.close()
    assert part.closed


def test_a_part_that_failed_says_so_when_it_is_used_and_closes_in_silence():
    def start():
        raise OSError("no disk")

    later = Later(start)
    with pytest.raises(OSError, match="no disk"):
        later.name  # noqa: B018
    later.close()
