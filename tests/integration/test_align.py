"""Whole runs as a user starts them: real vLLM, real Ray, real DeepSpeed, the smallest honest preset."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
import pytest

from rlsys import wire
from rlsys.common import files
from rlsys.journal import Journal
from rlsys.records import PreferencePair, ScoredGroup, ScoredResponse
from tests.contributing import write_examples

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
DEADLINE_S = 2400
"""For a run; the first makes the models, if they are not cached."""
MARK = "RLSYS_TEST_RUN"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder for runs, with the cache of models beside it (shared by the module's runs)."""
    return tmp_path_factory.mktemp("runs")


def start(workplace, *words, env=None):
    """A run in a process of its own, which all processes that it starts can be told by."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "rlsys.app.align", *words],
        cwd=ROOT,
        env={**os.environ, MARK: mark, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    process.mark = mark
    return process


def begin(workplace, *words, env=None):
    return start(workplace, "preset=scenes_ci", f"output.runs_dir={workplace}", *words, env=env)


def finish(process):
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    return output


def summary(workplace, name):
    return json.loads((workplace / name / "summary.json").read_text())


def numbers(workplace, name):
    """What must not depend on interruptions: everything of the rounds but times and failures."""
    kept = []
    for entry in summary(workplace, name)["rounds"]:
        entry = {key: value for key, value in entry.items() if key not in ("seconds", "failed")}
        entry["sync"] = {key: value for key, value in entry["sync"].items() if key != "seconds"}
        kept.append(entry)
    return kept


def pairs(workplace, name):
    """All pairs of a run, every bit of them."""
    journal = Journal(workplace / name / "journal")
    return wire.encode_many([pair for round in journal.rounds() for pair in journal.read(round, PreferencePair)])


def started_by(process):
    """Processes that are there because of a run, but for the one that was started."""
    found = []
    for other in psutil.process_iter(["pid"]):
        try:
            if other.pid != process.pid and other.environ().get(MARK) == process.mark:
                found.append(other)
        except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):  # it ended, or is not ours
            continue
    return found


def wait_until_alone(process, seconds=20.0):
    """Nothing that a run has started is left."""
    end = time.monotonic() + seconds
    while left := started_by(process):
        assert time.monotonic() < end, f"left behind: {[other.cmdline() for other in left]}"
        time.sleep(0.2)


def wait_until(condition, process, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.stdout.read()}"
        assert time.monotonic() < end, f"timed out waiting until {what}"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def undisturbed(workplace):
    """The run that others are compared with."""
    process = begin(workplace, "name=undisturbed")
    output = finish(process)
    wait_until_alone(process)
    return output


def test_a_run_leaves_what_it_promises(workplace, undisturbed):
    run = workplace / "undisturbed"
    found = summary(workplace, "undisturbed")
    assert len(found["rounds"]) == 2
    for entry in found["rounds"]:
        assert entry["num_prompts"] == 24 and entry["num_responses"] == 96 and entry["num_examples"] > 0
        assert entry["sync"]["max_logprob_gap"] <= 1e-3
        assert entry["staleness"] == 0
        assert {"chair_i", "chair_s", "recall", "mean_length"} <= set(entry["eval"])
        assert {"rollout", "feedback", "learn", "sync", "checkpoint", "round"} <= set(entry["seconds"])
    assert {"value", "low", "high"} == set(found["start"]["eval"]["chair_i"])
    for name in ("config.yaml", "metrics.jsonl", "report.html", "journal", "checkpoints", "tensorboard"):
        assert (run / name).exists(), name
    page = (run / "report.html").read_text().replace("http://www.w3.org", "")
    assert "http://" not in page and "https://" not in page
    from transformers import AutoModelForImageTextToText

    AutoModelForImageTextToText.from_pretrained(run / "checkpoints" / "round-0001" / "policy")


def test_a_run_killed_in_round_two_goes_on_with_the_same_pairs_and_numbers(workplace, undisturbed):
    process = begin(workplace, "name=killed")
    journal = workplace / "killed" / "journal"
    wait_until(lambda: list(journal.glob("round-0001*")), process, "round 2 begins")
    process.kill()
    process.communicate()
    wait_until_alone(process)
    output = finish(start(workplace, f"resume={workplace / 'killed'}"))
    assert "report" in output
    assert pairs(workplace, "killed") == pairs(workplace, "undisturbed")
    assert numbers(workplace, "killed") == numbers(workplace, "undisturbed")
    assert "all 2 rounds are done" in finish(start(workplace, f"resume={workplace / 'killed'}"))


def test_a_rollout_actor_killed_in_a_round_is_replaced_and_nothing_is_missing(workplace, undisturbed):
    process = begin(workplace, "name=wounded", "rollout.batch=4", "schedule.rounds=1")
    journal = workplace / "wounded" / "journal"
    wait_until(lambda: list(journal.glob("round-0000*")), process, "round 1 begins")
    (victim,) = [other for other in started_by(process) if "RolloutWorker" in " ".join(other.cmdline())]
    victim.kill()
    finish(process)
    (first,) = summary(workplace, "wounded")["rounds"]
    assert first["failed"]["workers"] == 1 and first["failed"]["rollouts"] == 0
    assert first["num_prompts"] == 24 and first["num_responses"] == 96


def test_two_rollout_actors_two_zero3_ranks_and_lag(workplace, undisturbed):
    words = ("rollout.num_actors=2", "learner.num_ranks=2", "learner.zero_stage=3", "schedule.lag=1")
    finish(begin(workplace, "name=wide", *words))
    found = summary(workplace, "wide")["rounds"]
    assert [entry["staleness"] for entry in found] == [0, 1]
    assert max(entry["sync"]["max_logprob_gap"] for entry in found) <= 1e-3


@pytest.fixture
def ray_head(monkeypatch):
    """A running Ray head of somebody else's: its dashboard's address, and its Python."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # as a head wants it; whoever submits must say so too
    folder = tempfile.mkdtemp(prefix="ray-")  # short: the paths of sockets below it are limited
    python = python_without_spaces(Path(folder))
    ports = ["--port=26379", "--dashboard-port=28265", "--ray-client-server-port=26380"]
    begun = [python, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    command = [*begun, *ports, "--num-cpus=2", f"--temp-dir={folder}"]
    head = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        end = time.monotonic() + 120
        while not _listens(28265):
            assert head.poll() is None, head.stdout.read()
            assert time.monotonic() < end, "the head's dashboard does not answer"
            time.sleep(0.5)
        yield "http://127.0.0.1:28265", python
    finally:
        os.killpg(head.pid, signal.SIGTERM)
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def python_without_spaces(folder):
    """This environment's Python by another path: Ray hands its workers' to a shell without quotes."""
    (folder / "environment").symlink_to(sys.prefix)
    return str(folder / "environment" / "bin" / "python")


def _listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_job_submitted_to_a_running_ray(workplace, undisturbed, ray_head):
    address, python = ray_head
    submit = [python, "-m", "ray.scripts.scripts", "job", "submit", f"--address={address}"]
    words = ["preset=scenes_ci", "schedule.rounds=1", "name=job", f"output.runs_dir={workplace}"]
    command = [*submit, "--working-dir", ".", "--", python, "-m", "rlsys.app.align", *words]
    end = time.monotonic() + 120
    while True:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE_S)
        if "No available agent" not in done.stderr or time.monotonic() > end:
            break
        time.sleep(2.0)  # the head has just started: its agent is not there yet
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(summary(workplace, "job")["rounds"]) == 1


def test_a_run_with_lag_killed_in_its_last_round_goes_on_with_the_same_pairs_and_numbers(workplace, undisturbed):
    words = ("schedule.rounds=3", "schedule.lag=1", "eval.every=0")
    finish(begin(workplace, "name=ahead", *words))
    process = begin(workplace, "name=ahead_killed", *words)
    checkpoints = workplace / "ahead_killed" / "checkpoints"
    wait_until((checkpoints / "round-0000" / "manifest.json").exists, process, "round 1 is done")
    process.kill()
    process.communicate()
    wait_until_alone(process)
    finish(start(workplace, f"resume={workplace / 'ahead_killed'}"))
    assert pairs(workplace, "ahead_killed") == pairs(workplace, "ahead")
    assert numbers(workplace, "ahead_killed") == numbers(workplace, "ahead")
    assert [entry["staleness"] for entry in summary(workplace, "ahead")["rounds"]] == [0, 1, 1]
    assert all(entry["metrics"]["reference_checked"] > 0 for entry in summary(workplace, "ahead")["rounds"])


def test_a_run_killed_after_its_last_report_is_written_up(workplace, undisturbed):
    """The report of a round is in the journal before `metrics.jsonl`, `summary.json` and the page have it."""
    run = workplace / "unwritten"
    shutil.copytree(workplace / "undisturbed", run)
    (run / "report.html").unlink()
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text(lines[0])
    found = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps({**found, "rounds": found["rounds"][:1]}))
    assert "report: " in finish(start(workplace, f"resume={run}"))
    assert (run / "report.html").exists()
    assert (run / "metrics.jsonl").read_text() == "".join(lines)
    assert summary(workplace, "unwritten") == found


def test_only_one_process_is_at_a_run(workplace, undisturbed):
    with files.locked(workplace / "undisturbed" / ".lock", busy="never"):
        process = start(workplace, f"resume={workplace / 'undisturbed'}")
        output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2 and "another process is at this run" in output


def test_a_method_of_ones_own_from_contributing_runs_on_scenes(workplace, tmp_path):
    """Four files outside of the repository: two roles in two waves, a policy gradient, a judged evaluation, a preset."""
    words = ("name=opinions", "method=opinions", "evaluations.approved.num_scenes=4", "schedule.rounds=1")
    small = ("schedule.num_prompts=6", "schedule.num_candidates=3", "evaluations.scenes.num_scenes=4")
    finish(begin(workplace, *words, *small, env=write_examples(tmp_path)))
    (entry,) = summary(workplace, "opinions")["rounds"]
    assert 0 < entry["eval"]["approved"]["value"] < 1 and "chair_i" in entry["eval"]
    assert entry["metrics"]["score"] > 0 and entry["sync"]["max_logprob_gap"] < 1e-3
    journal = Journal(workplace / "opinions" / "journal")
    examples = list(journal.read(0, ScoredResponse))
    assert len(examples) == entry["num_examples"] == 18, "one example per candidate"
    scored = list(journal.read(0, ScoredGroup))
    assert all(0 < verdict.score < 1 for group in scored for verdict in group.verdicts)
