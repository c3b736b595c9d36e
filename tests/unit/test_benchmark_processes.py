"""What goes wrong in a side's process is raised where it was asked, and nothing of it is left when it is closed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks.processes import ANSWER, Child, compare, failures_sent, received, serve_turns, stopped

WHILE_PARENT_IS_THERE = "import os, time\nparent = os.getppid()\nwhile os.getppid() == parent: time.sleep(0.01)"


@pytest.fixture
def pipe():
    return multiprocessing.Pipe()


def test_answers_come_as_they_are(pipe):
    here, there = pipe
    with failures_sent(there):
        there.send((ANSWER, {"seconds": 1.5}))
    assert received(here) == {"seconds": 1.5}


def test_a_failure_comes_with_its_traceback(pipe):
    here, there = pipe
    with failures_sent(there):
        raise KeyError("no such case")
    with pytest.raises(RuntimeError, match="KeyError: 'no such case'"):
        received(here)


def serve(pipe, job):
    """Starts a process, as TRL its loaders."""
    child = subprocess.Popen([sys.executable, "-c", job])
    pipe.send((ANSWER, child.pid))
    pipe.recv()


def test_a_closed_side_leaves_no_process_that_stands_still():
    side = Child(serve, "while True: pass")
    pid = side.first()
    side.close()
    assert _becomes(lambda: not _is_there(pid))


def test_a_killed_program_leaves_no_process_that_stands_still(pipe):
    here, there = pipe
    program = multiprocessing.get_context("spawn").Process(target=killed, args=(there,))
    program.start()
    there.close()  # so that a program that fails ends the wait
    pids = here.recv()
    program.join()
    assert program.exitcode == -signal.SIGKILL
    assert _becomes(lambda: not any(map(_is_there, pids)))


def killed(pipe):
    """A program that is killed while its side, and what that has started, stand still."""
    side = Child(serve, WHILE_PARENT_IS_THERE)
    started = side.first()
    pids = [side._process.pid, started]
    assert _becomes(lambda: all(psutil.Process(pid).status() == psutil.STATUS_STOPPED for pid in pids))
    pipe.send(pids)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_side_and_what_it_has_started_stand_still_while_the_other_is_measured():
    side = Child(starting_and_looking, "while True: pass")
    try:
        processes = [psutil.Process(side.first()), psutil.Process(side._process.pid)]
        for _ in range(2):
            assert _becomes(lambda: {one.status() for one in processes} == {psutil.STATUS_STOPPED})
            assert side.say("look") != psutil.STATUS_STOPPED
    finally:
        side.close()


def starting_and_looking(pipe, job):
    """Says how it finds the process that it has started."""
    child = psutil.Popen([sys.executable, "-c", job])
    pipe.send((ANSWER, child.pid))
    while pipe.recv() == "look":
        pipe.send((ANSWER, child.status()))


def test_processes_stand_still_for_a_while():
    child = psutil.Popen([sys.executable, "-c", "while True: pass"])
    try:
        with stopped([child.pid]):
            assert _becomes(lambda: child.status() == psutil.STATUS_STOPPED)
        assert _becomes(lambda: child.status() != psutil.STATUS_STOPPED)
    finally:
        child.kill()
        child.wait()
    with stopped([child.pid]):  # one that is gone is nothing
        pass


def test_what_stands_still_goes_on_when_the_program_is_killed(pipe):
    """Engines are children of Ray: no signal of the kernel reaches them when the program is gone."""
    here, there = pipe
    other = psutil.Popen([sys.executable, "-c", "while True: pass"])
    try:
        program = multiprocessing.get_context("spawn").Process(
            target=killed_while_another_waits, args=(there, other.pid)
        )
        program.start()
        there.close()
        assert here.recv() == psutil.STATUS_STOPPED
        program.join()
        assert program.exitcode == -signal.SIGKILL
        assert _becomes(lambda: other.status() != psutil.STATUS_STOPPED)
    finally:
        other.kill()
        other.wait()


def killed_while_another_waits(pipe, pid):
    with stopped([pid]):
        assert _becomes(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        pipe.send(psutil.Process(pid).status())
        os.kill(os.getpid(), signal.SIGKILL)


def doubling(factor):
    return lambda turn: factor * turn


def failing():
    raise OSError("no such model")


def test_a_child_calls_a_function_in_a_process_of_its_own():
    side = Child(serve_turns, doubling, 2)
    try:
        assert [side(turn) for turn in (3, 4)] == [6, 8]
        process = psutil.Process(side._process.pid)
    finally:
        side.close()
    assert not process.is_running()
    side.close()  # once more is nothing


def test_a_child_that_need_not_stand_still_goes_on():
    side = Child(serve_turns, doubling, 2, stops=False)
    try:
        assert side(1) == 2
        assert psutil.Process(side._process.pid).status() != psutil.STATUS_STOPPED
    finally:
        side.close()


def test_a_child_that_does_not_start_says_so_when_it_is_called():
    side = Child(serve_turns, failing)
    try:
        with pytest.raises(RuntimeError, match="OSError: no such model"):
            side(0)
    finally:
        side.close()


class Worker:
    """A side in this process."""

    def __init__(self, error=None):
        self.error, self.closed = error, False

    def __call__(self, turn):
        return type("Turn", (), {"speed": 1.0 + turn})

    def pids(self):
        return []

    def close(self):
        self.closed = True
        if self.error:
            raise self.error


@pytest.mark.parametrize("broken", [0, 1])
def test_both_sides_are_closed_even_if_one_cannot_be(broken):
    both = [Worker(), Worker()]
    both[broken].error = OSError("cannot be closed")
    with pytest.raises(OSError, match="cannot be closed"):
        compare(*both, repeats=1)
    assert both[0].closed and both[1].closed


def _becomes(found):
    """Whether something comes true within some seconds: signals take their time."""
    end = time.monotonic() + 5
    while not found() and time.monotonic() < end:
        time.sleep(0.01)
    return found()


def _is_there(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
