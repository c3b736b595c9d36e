"""The console: lines in a pipe, bars on a terminal, from several threads at once."""

import io
import logging
import os
import re
import threading
from dataclasses import replace

import pytest

from rlsys.records import Interval, RoundReport, SyncReport
from rlsys.report.progress import QUIET_ENV, Progress, quiet_libraries, round_line

REPORT = RoundReport(
    round=2, policy_version=3, num_prompts=256, num_responses=2048, num_examples=1100,
    failed={"rollouts": 0, "critiques": 3, "workers": 1}, staleness=0, loss=0.51234, kl=0.0123,
    metrics={"implicit_accuracy": 0.731}, sync=SyncReport(
        version=3, num_tensors=93, num_bytes=10, digest="d", seconds=0.2, max_logprob_gap=2.31e-5, num_probe_tokens=64
    ),
    eval={"chair_i": Interval(value=0.1234, low=0.1, high=0.15), "mean_length": Interval(value=9.5, low=9, high=10)},
    seconds={"round": 34.06}, accepted=False,
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def screen(terminal: Terminal) -> str:
    """What was written, without the control sequences."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return Terminal()


def test_a_round_in_one_line():
    assert round_line(REPORT) == (
        "round 2 · CHAIR_i 12.3% · length 9.5 · 2,048 responses, 1,100 examples · loss 0.512, right 73%, KL 0.0123 · "
        "sync gap 2.3e-05 · failed: 3 critiques, 1 workers · refused, weights went back · 34.1 s"
    )


def test_a_round_whose_objective_gives_no_accuracy_and_whose_kl_was_not_measured():
    line = round_line(replace(REPORT, metrics={}, kl=float("nan")))
    assert " · loss 0.512 · sync gap" in line


def test_a_rounds_line_says_what_its_replay_brought():
    line = round_line(replace(REPORT, replayed={"earlier_rounds": 2200, "rlaif_v": 300}))
    assert "2,048 responses, 1,100 examples, 2,200 earlier_rounds, 300 rlaif_v · loss 0.512" in line


def test_a_pipe_gets_lines_only():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress.started({"chair_i": Interval(value=0.25, low=0.2, high=0.3)})
        assert list(progress.track("rollout", iter("abc"), 3)) == ["a", "b", "c"]
        progress.say("[not markup]")
        progress.round_done(REPORT)
    assert stream.getvalue() == "start · CHAIR_i 25.0%\n[not markup]\n" + round_line(REPORT) + "\n"


def test_a_terminal_gets_a_bar_with_count_per_stage(terminal):
    with Progress(terminal) as progress:
        assert list(progress.track("rollout", range(40), 40)) == list(range(40))
        assert list(progress.track("critique", range(5), None)) == list(range(5))
        progress._bars.refresh()
        assert re.search(r"rollout .*40/40", screen(terminal))
        assert re.search(r"critique .*5/\?", screen(terminal))
        progress.round_done(REPORT)
        assert progress._bars.tasks == []
    assert "round 2" in screen(terminal)


def test_stages_are_tracked_from_several_threads(terminal):
    seen = {name: [] for name in ("rollout", "critique", "train")}
    with Progress(terminal) as progress:
        threads = [
            threading.Thread(target=lambda name=name: seen[name].extend(progress.track(name, range(200), 200)))
            for name in seen
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=10)
        assert sorted(task.completed for task in progress._bars.tasks) == [200, 200, 200]
    assert all(items == list(range(200)) for items in seen.values())


@pytest.mark.parametrize("make", [io.StringIO, Terminal])
def test_leaving_early_closes_the_source(make, terminal):
    closed = []

    def source():
        try:
            yield from range(10)
        finally:
            closed.append(True)

    with Progress(make()) as progress:
        tracked = progress.track("rollout", source(), 10)
        assert next(tracked) == 0
        tracked.close()
        assert closed == [True]


def test_an_error_of_the_source_passes_through(terminal):
    def source():
        yield 1
        raise KeyError("gone")

    with Progress(terminal) as progress, pytest.raises(KeyError, match="gone"):
        list(progress.track("train", source(), 2))


def test_quiet_libraries_sets_levels_and_keeps_what_the_user_set(monkeypatch):
    for name in QUIET_ENV:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "DEBUG")
    quiet_libraries()
    assert os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert logging.getLogger("ray").level == logging.ERROR
    for name in QUIET_ENV:
        monkeypatch.delenv(name, raising=False)
