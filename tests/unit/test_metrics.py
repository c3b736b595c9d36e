"""A run's numbers on disk: field names, strict JSON, and what a resumed run keeps."""

import json
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.errors import ConfigError
from rlsys.records import Interval, RoundReport, SyncReport
from rlsys.report.metrics import RunMetrics, plain, scalars

EVAL = {name: Interval(value=0.2, low=0.1, high=0.3) for name in ("chair_i", "chair_s", "recall", "mean_length")}


def report(round: int, *, loss: float = 0.6) -> RoundReport:
    sync = SyncReport(
        version=round + 1, num_tensors=93, num_bytes=1000, digest="ab", seconds=0.1, max_logprob_gap=2e-5,
        num_probe_tokens=64,
    )  # fmt: skip
    return RoundReport(
        round=round, policy_version=round + 1, num_prompts=8, num_responses=64, num_examples=100,
        failed={"rollouts": 0, "critiques": 2, "workers": 0}, staleness=0, loss=loss, kl=0.01,
        metrics={"grad_norm": 1.5}, sync=sync, eval=EVAL, seconds={"rollout": 3.0, "round": 5.0},
    )  # fmt: skip


def open_metrics(directory: Path, **options) -> RunMetrics:
    return RunMetrics(directory, config={"seed": 3}, **{"tensorboard": False, **options})


def lines(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def summary(directory: Path) -> dict:
    def refuse(constant: str):
        raise ValueError(constant)

    return json.loads((directory / "summary.json").read_text(), parse_constant=refuse)


def test_summary_has_start_and_rounds_with_the_fields_readers_rely_on(tmp_path):
    with open_metrics(tmp_path / "run") as metrics:
        metrics.start(EVAL)
        metrics.append(report(0))
    written = summary(tmp_path / "run")
    assert written["start"]["eval"]["chair_i"] == {"value": 0.2, "low": 0.1, "high": 0.3}
    assert written["config"] == {"seed": 3}
    assert written["versions"]["numpy"]
    (entry,) = written["rounds"]
    assert set(entry) >= {
        "eval", "num_prompts", "num_responses", "num_examples", "failed", "staleness", "loss", "kl", "sync",
        "seconds",
    }  # fmt: skip
    assert set(entry["eval"]) == {"chair_i", "chair_s", "recall", "mean_length"}
    assert entry["sync"]["max_logprob_gap"] == 2e-5
    assert entry["seconds"] == {"rollout": 3.0, "round": 5.0}
    assert lines(tmp_path / "run") == [entry]


def test_every_round_is_on_disk_before_the_next(tmp_path):
    metrics = open_metrics(tmp_path)
    assert summary(tmp_path)["rounds"] == lines(tmp_path) == []
    for round in range(3):
        metrics.append(report(round))
        assert [entry["round"] for entry in lines(tmp_path)] == list(range(round + 1))
        assert summary(tmp_path)["rounds"] == lines(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "summary.json"]


def test_what_is_not_finite_is_null(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.append(replace(report(0, loss=float("nan")), kl=float("inf"), metrics={"a": float("-inf")}))
    (entry,) = summary(tmp_path)["rounds"]
    assert (entry["loss"], entry["kl"], entry["metrics"]["a"]) == (None, None, None)
    assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_a_resumed_run_keeps_its_start_and_its_finished_rounds_alone(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.start(EVAL)
        for round in range(3):
            metrics.append(report(round))
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"round": 3, "torn')
    with open_metrics(tmp_path, history=[report(0), report(1)]) as metrics:
        assert [entry["round"] for entry in lines(tmp_path)] == [0, 1]
        metrics.append(report(2, loss=0.5))
    assert [(entry["round"], entry["loss"]) for entry in lines(tmp_path)] == [(0, 0.6), (1, 0.6), (2, 0.5)]
    assert summary(tmp_path)["rounds"] == lines(tmp_path)
    assert summary(tmp_path)["start"]["eval"]["recall"]["value"] == 0.2


def test_a_round_that_was_evaluated_after_its_end_stays_so_when_the_run_is_resumed(tmp_path):
    unseen = [replace(report(round), eval={}) for round in range(2)]
    with open_metrics(tmp_path, directions={"chair_i": -1}) as metrics:
        for one in unseen:
            metrics.append(one)
        assert not metrics.is_last_evaluated
        metrics.evaluated(EVAL)
        assert metrics.is_last_evaluated
    for _ in range(2):
        assert [entry["eval"].get("recall", {}).get("value") for entry in lines(tmp_path)] == [None, 0.2]
        assert summary(tmp_path)["rounds"] == lines(tmp_path)
        assert open_metrics(tmp_path, history=unseen).is_last_evaluated
    again = replace(unseen[1], policy_version=7)  # trained again, not this one
    assert not open_metrics(tmp_path, history=[unseen[0], again]).is_last_evaluated


def test_the_summary_tells_which_way_metrics_get_better(tmp_path):
    open_metrics(tmp_path, directions={"chair_i": -1, "recall": 1})
    assert summary(tmp_path)["directions"] == {"chair_i": -1, "recall": 1}


def test_a_new_run_in_an_old_folder_keeps_nothing(tmp_path):
    with open_metrics(tmp_path) as metrics:
        metrics.start(EVAL)
        metrics.append(report(0))
    open_metrics(tmp_path)
    assert (summary(tmp_path)["start"], lines(tmp_path)) == ({}, [])


def test_plain_values():
    import numpy as np

    assert plain({1: (np.float32(0.5), np.int64(3), float("nan"), Path("a/b"), None, True)}) == {
        "1": [0.5, 3, None, "a/b", None, True]
    }


def test_scalars_are_flat_and_finite():
    flat = scalars(replace(report(0, loss=float("nan")), replayed={"rlaif_v": 30}))
    assert flat["replayed/rlaif_v"] == 30
    assert (flat["eval/chair_i"], flat["eval/chair_i_high"], flat["train/grad_norm"]) == (0.2, 0.3, 1.5)
    assert (flat["seconds/rollout"], flat["failed/critiques"], flat["sync/max_logprob_gap"]) == (3.0, 2.0, 2e-5)
    assert "loss" not in flat


def test_tensorboard_events(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_metrics(tmp_path, tensorboard=True) as metrics:
        metrics.start(EVAL)
        metrics.append(report(0))
        metrics.append(report(1))
    with open_metrics(tmp_path, tensorboard=True, history=[report(0)]) as metrics:
        metrics.append(report(1, loss=0.4))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("eval/chair_i")] == [0, 1, 2]
    assert [round(event.value, 3) for event in events.Scalars("loss")] == [0.6, 0.4]


def test_wandb_that_is_not_installed_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="wandb is configured, but the package is not installed"):
        open_metrics(tmp_path, wandb={"project": "p"})


def test_wandb_gets_options_config_and_steps(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step):
            calls.append((step, values["eval/chair_i"]))

        def finish(self):
            calls.append("finished")

    def init(**options):
        calls.append(options)
        return Run()

    module = types.ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    with open_metrics(tmp_path, wandb={"project": "p", "mode": "offline"}) as metrics:
        metrics.start(EVAL)
        metrics.append(report(0))
    assert calls == [
        {"dir": str(tmp_path), "config": {"seed": 3}, "project": "p", "mode": "offline"},
        (0, 0.2),
        (1, 0.2),
        "finished",
    ]
