"""Feedback that asks no judge, in its own processes: order, errors, deaths, and the driver's end."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from actors.feedback import FeedbackStage
from actors.feedback_processes import FeedbackProcesses, RemoteTraceback
from rlsys.errors import ConfigError
from tests.fakes import make_group, make_verdict


@dataclass(kw_only=True)
class Words:
    """Scores an answer by its length; some words do what a plug-in should not."""

    roles = ()
    scale: float = 1.0

    def judge(self, group):
        yield from ()
        texts = [response.text for response in group.responses]
        if "raise" in texts:
            raise FileNotFoundError("no table of words")
        if "die" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "sleep" in texts:
            time.sleep(60)
        if "pid" in texts:
            return (make_verdict(0.0, str(os.getpid())),)
        time.sleep(0.02 * (group.index % 3))
        return tuple(make_verdict(self.scale * len(text)) for text in texts)


@dataclass
class Unpicklable:
    roles = ()

    def __reduce__(self):
        raise TypeError("holds a lock")


@pytest.fixture(scope="module")
def stage():
    one = FeedbackStage(feedback=Words(scale=2.0), num_processes=2)
    yield one
    one.close()


def scores(scored):
    return [[verdict.score for verdict in one.verdicts] for one in scored]


def test_verdicts_come_in_order_from_other_processes(stage):
    groups = [make_group(texts=("x" * (number + 1), "y"), index=number) for number in range(12)]
    found = list(stage.stream(iter(groups)))
    assert scores(found) == [[2.0 * (number + 1), 2.0] for number in range(12)]
    assert all(one.group is group for one, group in zip(found, groups, strict=True))
    ((own,),) = [[int(v.critiques[0].text) for v in one.verdicts] for one in stage.stream([make_group(texts=("pid",))])]
    assert own in stage.pids() and own != os.getpid()
    assert stage.count(0)["seconds"] > 0 and stage.count(0)["failed_workers"] == 0


def test_a_verdict_does_not_wait_for_later_answers(stage):
    answered = []

    def groups():
        yield make_group(texts=("a",))
        while not answered:
            time.sleep(0.001)
        yield make_group(texts=("bb",))

    stream = stage.stream(groups())
    assert scores([next(stream)]) == [[2.0]]
    answered.append(True)
    assert scores(stream) == [[4.0]]


def test_an_error_of_the_plug_in_is_raised_with_its_place(stage):
    stream = stage.stream([make_group(texts=("fine",)), make_group(texts=("raise",))])
    assert scores([next(stream)]) == [[8.0]]
    with pytest.raises(FileNotFoundError, match="no table of words") as caught:
        next(stream)
    assert caught.value.__notes__ == ["feedback Words, prompt 'p'"]
    assert isinstance(caught.value.__cause__, RemoteTraceback) and "in judge" in str(caught.value.__cause__)
    assert scores(stage.stream([make_group(texts=("a",))])) == [[2.0]]  # the process lives


def test_answers_that_kill_the_process_have_failed_verdicts_and_are_counted(stage):
    found = list(stage.stream([make_group(texts=("die", "x"), round=7), make_group(texts=("abc",), round=7)]))
    assert scores(found) == [[None, None], [6.0]]
    assert [verdict.failed for verdict in found[0].verdicts] == [1, 1]
    assert stage.count(7)["failed_workers"] == 2


def test_a_process_that_is_late_counts_as_dead():
    processes = FeedbackProcesses(Words(), number=1, deadline_s=5.0)
    slow = processes.judge(make_group(texts=("sleep",)), Words())
    processes._handles[0]._deadline_s = 0.05
    with pytest.raises(ConfigError, match="did not start"):  # the new one is given no longer
        slow.result(10.0)
    processes.close()


def test_closing_ends_processes_in_the_middle_of_a_group():
    processes = FeedbackProcesses(Words(), number=1, deadline_s=60.0)
    (pid,) = processes.pids()
    future = processes.judge(make_group(texts=("sleep",)), Words())
    processes.close()
    assert not alive(pid)
    assert future.exception(5.0) is not None or future.cancelled()


def test_a_plug_in_that_cannot_travel_is_named():
    with pytest.raises(ConfigError, match="feedback Unpicklable cannot be taken to a process of its own: holds a lock"):
        FeedbackStage(feedback=Unpicklable())


PROGRAM = """
import sys
from rlsys import registry
from actors.feedback_processes import FeedbackProcesses

if __name__ == "__main__":
    registry.discover()
    short = registry.feedback.make("short")
    processes = FeedbackProcesses(short, number=1, deadline_s=60.0)
    from tests.fakes import make_group, make_verdict
    print([v.score for v in processes.judge(make_group(texts=("a",)), short).result()[1]], *processes.pids(), flush=True)
    processes.judge(make_group(texts=("sleep",)), short)
    sys.stdin.read()
"""
PLUG_IN = """
from dataclasses import dataclass

from rlsys.registry import feedback
from tests.unit.test_feedback_processes import Words


@feedback("short")
@dataclass(kw_only=True)
class Short(Words):
    scale: float = -1.0
"""


def test_a_plug_in_from_elsewhere_is_found_and_its_process_ends_with_a_killed_driver(tmp_path):
    (tmp_path / "own_feedback.py").write_text(PLUG_IN)
    (tmp_path / "driver.py").write_text(PROGRAM)
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py")],
        env={**os.environ, "RLSYS_PLUGINS": "own_feedback", "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    score, pid = driver.stdout.readline().split()
    assert score == "[-1.0]"
    driver.kill()
    driver.wait()
    end = time.monotonic() + 5.0
    while alive(int(pid)) and time.monotonic() < end:
        time.sleep(0.01)
    assert not alive(int(pid))


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
