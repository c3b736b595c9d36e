"""What goes wrong in a side's process is raised where it was asked, and nothing of it is left when it is closed."""

import multiprocessing
import subprocess
import sys
import time

import psutil
import pytest
import torch

from benchmarks.processes import ANSWER, JobSide, failures_sent, received


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


def test_a_gpu_that_is_too_small_is_told_apart(pipe):
    here, there = pipe
    with failures_sent(there):
        raise torch.OutOfMemoryError("80 GiB are missing")
    with pytest.raises(MemoryError, match="80 GiB are missing"):
        received(here)


def serve(pipe, job):
    """Starts a process that stands still, as a loader does while the other side is measured."""
    child = subprocess.Popen([sys.executable, "-c", job])
    psutil.Process(child.pid).suspend()
    pipe.send((ANSWER, child.pid))
    pipe.recv()


def test_a_closed_side_leaves_no_process_that_stands_still():
    side = JobSide(serve)
    pid = side.begin("while True: pass")
    side.close()
    end = time.monotonic() + 5
    while _is_there(pid) and time.monotonic() < end:
        time.sleep(0.01)
    assert not _is_there(pid)


def _is_there(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
