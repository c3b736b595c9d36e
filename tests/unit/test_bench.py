"""What `rlsys bench` says of a round's time."""

from contextlib import nullcontext
from types import SimpleNamespace

import psutil
import pytest

from rlsys.app import bench, cores
from rlsys.app import config as configuration
from rlsys.app.breakdown import advice, spread, stages, table
from rlsys.records import RoundReport, SyncReport


def report(rollout, learn):
    sync = SyncReport(
        version=1, num_tensors=2, num_bytes=5_000_000, digest="", seconds=0.1, max_logprob_gap=0.0, num_probe_tokens=8
    )
    return RoundReport(
        round=1,
        policy_version=2,
        num_prompts=4,
        num_rollouts=16,
        num_pairs=30,
        failed={},
        staleness=0,
        loss=0.6,
        implicit_accuracy=0.5,
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
        ("learn", 1.0, 30.0, "pairs", None),
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
    assert "critic.num_actors" in advice(found, 4.5)
    assert "critic" not in advice(found, 4.5, judges=False)


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
        "Of 2 cores 1.25 are busy: rollout 0.30, feedback 0.70, learn 0.25. Some wait: more critic actors "
        "(critic.num_actors) or more cores for them (critic.cores) would use them."
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


def test_a_configuration_with_a_gate_is_measured_too(monkeypatch, tmp_path):
    """Its rules look at evaluations, and those are left out."""
    config, _ = configuration.load(["preset=scenes", "gate.refuse=true", "gate.patience=2"])
    seen = []

    class Stop(Exception):
        pass

    def stop(config, host):
        seen.append(config)
        raise Stop

    monkeypatch.setattr(bench, "cluster", lambda address: nullcontext(None))
    monkeypatch.setattr(bench, "policy_folder", stop)
    with pytest.raises(Stop):
        bench.measure(config, tmp_path)
    assert seen[0].eval.every == 0 and not seen[0].gate.looks_at_metric
