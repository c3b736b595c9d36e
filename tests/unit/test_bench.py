"""What `rlsys bench` says of a round's time."""

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from rlsys.app import bench, command, cores
from rlsys.app import config as configuration
from rlsys.app.breakdown import advice, spread, stages, table
from rlsys.errors import EngineError
from rlsys.journal import Journal
from rlsys.placement.machine import Machine
from rlsys.records import RoundReport, SyncReport


def report(rollout, learn):
    sync = SyncReport(
        version=1, num_tensors=2, num_bytes=5_000_000, digest="", seconds=0.1, max_logprob_gap=0.0, num_probe_tokens=8
    )
    return RoundReport(
        round=1,
        policy_version=2,
        num_prompts=4,
        num_responses=16,
        num_examples=30,
        failed={},
        staleness=0,
        loss=0.6,
        kl=0.1,
        metrics={},
        sync=sync,
        eval={},
        seconds={"rollout": rollout, "feedback": 2.0, "learn": learn, "sync": 0.1, "checkpoint": 0.5, "round": 4.5},
    )


def test_the_slowest_stage_is_named_with_what_would_help():
    reports = [report(4.0, 1.0), report(3.0, 1.0), report(5.0, 1.0)]
    found = stages(reports, [{"tokens": 4000.0, "critiques": 16.0}] * 3)
    assert [(stage.name, stage.seconds, stage.work, stage.unit, stage.cores) for stage in found] == [
        ("rollout", 4.0, 4000.0, "tokens", None),
        ("feedback", 2.0, 16.0, "critiques", None),
        ("learn", 1.0, 30.0, "examples", None),
        ("sync", 0.1, 5.0, "MB", None),
        ("checkpoint", 0.5, 1.0, "checkpoints", None),
    ]
    assert found[0].rate == 1000.0
    assert advice(found, 4.5) == (
        "rollout is the slowest stage: 89% of a round. With more rollout actors (rollout.num_actors) or more cores for "
        "them (rollout.cores) it would be shorter; the learner waits 64% of the time. checkpoint takes 11%, and the next "
        "round is answered meanwhile, and trained after it."
    )
    last = table(found, 4.5).splitlines()[-1]
    assert last.split() == ["round", "4.50", "=", "1.12", "x", "the", "slowest", "stage"]


def test_a_slow_learner_is_told_apart():
    found = stages([report(1.0, 4.0)], [{"tokens": 1.0, "critiques": 1.0}])
    assert advice(found, 4.5).startswith("learn is the slowest stage: 89% of a round. Give the learner more cores")


def test_nobody_is_told_to_start_judges_that_are_not_asked():
    found = stages([report(1.0, 1.0)], [{"tokens": 1.0, "critiques": 1.0}])
    assert "more judge actors (engines.judge.num_actors)" in advice(found, 4.5)
    assert "more processes that compute the feedback (engines.judge.num_actors)" in advice(found, 4.5, judges=False)
    assert "judge actors" not in advice(found, 4.5, judges=False)


def shared(**cores):
    """Advice for two cores on which every stage seems busy all the time."""
    found = stages([report(4.4, 4.4)] * 3, [{"tokens": 1.0, "critiques": 1.0}] * 3, [cores] * 3)
    return advice(found, 4.5, num_cores=2)


def test_where_stages_share_the_cores_those_count_that_are_kept_busy():
    text = shared(rollout=0.3, feedback=0.7, learn=0.9)
    assert text.startswith(
        "Of 2 cores 1.90 are busy: rollout 0.30, feedback 0.70, learn 0.90. They are the limit: a shorter round takes "
        "more cores or less work, first of all of learn."
    )
    text = shared(rollout=0.3, feedback=0.7, learn=0.25)
    assert text.startswith(
        "Of 2 cores 1.25 are busy: rollout 0.30, feedback 0.70, learn 0.25. Some wait: more judge actors "
        "(engines.judge.num_actors) or more cores for them (engines.judge.cores) would use them."
    )


def test_rounds_are_said_to_be_apart_and_one_alone_to_be_the_first():
    assert spread([4.5, 4.25, 5.0], warm=True) == "3 rounds of 4.25 to 5.00 s."
    assert spread([9.0], warm=False) == (
        "1 round of 9.00 s. None went before: engines compiled, caches filled and connections were made in it."
    )


def test_a_stage_has_the_cores_of_the_middle_round():
    laps = [{"rollout": cores, "feedback": 0.0, "learn": 1.0} for cores in (0.5, 0.9, 0.6)]
    found = stages([report(1.0, 1.0)] * 3, [{"tokens": 1.0, "critiques": 1.0}] * 3, laps)
    assert [stage.cores for stage in found] == [0.6, 0.0, 1.0, None, None]
    assert table(found, 4.5).splitlines()[1].split()[:4] == ["rollout", "1.00", "22%", "0.60"]


def test_cores_are_counted_over_the_time_of_a_lap(monkeypatch):
    spent = {7: 10.0, 8: 1.0}
    now = [100.0]

    class Process:
        def __init__(self, pid):
            if pid not in spent:
                raise psutil.NoSuchProcess(pid)
            self.pid = pid

        def cpu_times(self):
            return SimpleNamespace(user=spent[self.pid] - 0.5, system=0.5)

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(cores.time, "monotonic", lambda: now[0])
    members = [7, 8]
    clock = cores.CoreClock({"rollout": lambda: members, "feedback": lambda: []})
    now[0], spent[7], spent[8] = 104.0, 12.0, 3.0
    assert clock.lap() == {"rollout": 1.0, "feedback": 0.0}  # two and two seconds in four
    del spent[8]
    members[:] = [7, 8, 9]  # one died, one has come
    now[0], spent[7], spent[9] = 106.0, 13.0, 0.5
    assert clock.lap() == {"rollout": 0.75, "feedback": 0.0}


@pytest.fixture
def on(monkeypatch):
    """Put commands on a machine without starting anything there."""

    def put(**there):
        machine = Machine(**{"num_cpus": 2, "num_gpus": 0, "memory_gib": 64, "cores": (0, 1), **there})
        monkeypatch.setattr(command, "cluster", lambda address: nullcontext(machine))

    return put


def never(*given, **named):
    raise AssertionError("started")


def test_a_dry_run_prints_the_plan_of_the_rounds_that_would_be_measured(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(command, "cluster", never)
    words = ["preset=qwen2_5_vl_3b", f"output.runs_dir={tmp_path / 'runs'}", f"out={tmp_path / 'bench.json'}"]
    assert bench.main([*words, "dry_run=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "policy Qwen/Qwen2.5-VL-3B-Instruct, judge Qwen/Qwen2.5-VL-7B-Instruct"
    assert lines[1].startswith("role ")
    rounds = [line.partition(":")[0] for line in lines if line.startswith("round ")]
    assert rounds == ["round 0", "round 1", "round 2", "round 3"]  # of ten
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_said_before_a_model_is_made(on, monkeypatch, tmp_path, capsys):
    on(memory_gib=1)
    monkeypatch.setattr(bench, "role_folders", never)
    assert bench.main(["preset=scenes", f"output.runs_dir={tmp_path}"]) == 1
    assert "ResourceError: " in capsys.readouterr().err


def test_prompts_need_only_last_for_the_rounds_that_are_measured(on, monkeypatch, tmp_path, capsys):
    on()

    def stop(config, host):
        raise EngineError("the check is over")

    monkeypatch.setattr(bench, "role_folders", stop)
    prompts = tmp_path / "prompts.jsonl"
    words = ["prompts=jsonl", f"prompts.path={prompts}", "evaluations=none", f"output.runs_dir={tmp_path}"]
    words += ["schedule.rounds=10", "schedule.num_prompts=2"]
    for lines, status, said in ((8, 1, "the check is over"), (7, 2, "prompts: the schedule takes 8; ")):
        prompts.write_text('{"id": "a", "prompt": "what is this"}\n' * lines)
        assert bench.main(words) == status
        assert said in capsys.readouterr().err


@pytest.fixture
def parts(on, monkeypatch):
    """Four rounds of four to seven seconds without models and actors. Where and how they are run is appended to the list."""
    on()
    seen = []

    def assembled(config, host, directory, *, schedule, **others):
        seen.append((directory, config, schedule))
        (directory / "checkpoints").mkdir()
        stage = SimpleNamespace(pids=lambda: [])
        return nullcontext((SimpleNamespace(rollouts=stage, feedback=stage, learner=stage), None))

    def run_rounds(parts):
        directory, _, schedule = seen[-1]
        with Journal(directory / "journal") as journal:
            for round in range(schedule.num_rounds):
                journal.begin(round)
                found = report(2.0, 3.0)
                yield replace(found, round=round, seconds={**found.seconds, "round": 4.0 + round})

    folders = {"policy": Path("policy"), "judge": Path("judge")}
    monkeypatch.setattr(bench, "role_folders", lambda config, context: folders)
    monkeypatch.setattr(bench, "assembled", assembled)
    monkeypatch.setattr(bench, "run_rounds", run_rounds)
    return seen


def test_rounds_leave_the_numbers_and_nothing_where_runs_are(parts, tmp_path):
    runs, out = tmp_path / "new" / "runs", tmp_path / "bench.json"
    words = ["preset=scenes", "schedule.rounds=9", f"output.runs_dir={runs}"]
    assert bench.main([*words, f"out={out}"]) == 0
    found = json.loads(out.read_text())
    assert (found["seconds_of_each"], found["round_seconds"], found["command"]) == ([5.0, 6.0, 7.0], 6.0, words)
    ((directory, _, _),) = parts
    assert directory.parent == runs and list(runs.iterdir()) == []


@pytest.mark.parametrize(("error", "status"), [(EngineError("no memory"), 1), (KeyboardInterrupt(), 130)])
def test_rounds_that_fail_or_are_interrupted_leave_nothing(parts, monkeypatch, tmp_path, error, status):
    def fail(parts):
        raise error

    monkeypatch.setattr(bench, "run_rounds", fail)
    words = ["preset=scenes", f"output.runs_dir={tmp_path / 'runs'}", f"out={tmp_path / 'bench.json'}"]
    assert bench.main(words) == status
    assert len(parts) == 1 and list(tmp_path.rglob("*")) == [tmp_path / "runs"]


@pytest.mark.parametrize(("words", "kept"), [([], 1), (["output.keep_checkpoints=2"], 2)])
def test_one_checkpoint_is_kept_where_a_run_would_keep_all(words, kept):
    config, _ = configuration.load(["preset=scenes", *words])
    assert bench.first_rounds(config).output.keep_checkpoints == kept


def test_a_configuration_with_a_gate_is_measured_too(parts, tmp_path):
    """Its rules look at evaluations, and those are left out."""
    words = ["preset=scenes", "gate.refuse=true", "gate.patience=2", f"output.runs_dir={tmp_path}"]
    assert bench.main([*words, f"out={tmp_path / 'bench.json'}"]) == 0
    ((_, config, _),) = parts
    assert config.eval.every == 0 and not config.gate.looks_at_metric
