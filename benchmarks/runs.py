"""Whole runs, as `rlsys align` puts them together, for the programs that measure rounds."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import device
from benchmarks.harness import seconds

MOST_ROUNDS = 1000
LR = 1e-7
"""Learning rate so small that all rounds of a run are alike."""
_DIGESTED = 64 << 20
"""Bytes that the speed of the digest is measured with."""


class Silent:
    """A run's tracker that shows nothing."""

    def track(self, name: str, items: Iterable[Any], total: int) -> Iterable[Any]:
        """The items as they are."""
        return items


GIVEN = "RLSYS_BENCH_MODELS"
"""Environment variable: a folder with Hugging Face folders `policy` and `judge`, taken instead of making them."""


def preset(words: Sequence[str]) -> Any:
    """The configuration of preset `scenes` with alike rounds, for this device.

    Args:
        words: further overrides.
    """
    from rlsys.app import config as configuration

    own = [f"schedule.rounds={MOST_ROUNDS}", f"schedule.lr={LR}", "eval.every=0", "output.keep_checkpoints=2"]
    config, _ = configuration.load(["preset=scenes", *own, *device.cluster_words(), *words])
    return config


def scenes_models() -> tuple[Path, Path]:
    """Policy and judge of the scenes world: those of preset `scenes`, from the cache. If they are not there, they are
    trained, which takes minutes.
    """
    given = os.environ.get(GIVEN)
    if given:
        return Path(given) / "policy", Path(given) / "judge"
    from rlsys.app.cluster import cluster
    from rlsys.app.models import role_folders
    from rlsys.app.starting import Context
    from rlsys.report.progress import Progress

    config = preset([])
    with cluster(None) as machine, Progress() as progress:
        folders = role_folders(config, Context(machine=machine, progress=progress))
        return folders["policy"], folders["judge"]


@contextmanager
def started(config: Any, policy: Path, judge: Path | None) -> Iterator[Any]:
    """The parts of a run, started in a temporary folder; its weights are `ClockedWeights`."""
    from rlsys.app.assembly import assembled
    from rlsys.app.cluster import cluster
    from rlsys.app.starting import Context
    from rlsys.report.progress import Progress
    from rlsys.schedules.gate import GateConfig, MetricGate

    with (
        tempfile.TemporaryDirectory(prefix="rlsys-run-") as scratch,
        cluster(None) as machine,
        Progress() as progress,
        assembled(
            config,
            Context(machine=machine, progress=progress),
            Path(scratch),
            schedule=config.schedule.build(),
            models={"policy": policy} if judge is None else {"policy": policy, "judge": judge},
            gate=MetricGate(config=GateConfig()),
        ) as (parts, _),
    ):
        yield replace(parts, tracker=Silent(), weights=ClockedWeights(parts.weights))


class ClockedWeights:
    """The weights of a run, with a clock for the proof of every update.

    A round waits for the proof from the moment when the engines hold the new weights and the learner has sent them until
    `publish` returns. The digests at both ends, which are computed while weights are on their way, are added in full.
    """

    def __init__(self, weights: Any) -> None:
        """
        Args:
            weights: a `rlsys.run.sync.WeightSync`.
        """
        self._weights = weights
        for end, method in ((weights._rollouts, "update"), (weights._learner, "send")):
            setattr(end, method, self._marked(getattr(end, method)))
        self._per_byte = digest_seconds_per_byte()
        self.arrived = 0.0
        self.proof_s: list[float] = []

    def publish(self, version: int) -> Any:
        """As `rlsys.run.sync.WeightSync.publish`."""
        report = self._weights.publish(version)
        self.proof_s.append(time.monotonic() - self.arrived + 2 * report.num_bytes * self._per_byte)
        return report

    def _marked(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            result = method(*arguments)
            self.arrived = time.monotonic()
            return result

        return run


def digest_seconds_per_byte() -> float:
    """Seconds that one end of an update takes to fingerprint a byte of weights."""
    import torch

    from rlsys.transports.digest import TensorDigest, piece_sums

    weights = torch.ones(_DIGESTED, dtype=torch.uint8, device=device.name())
    if device.on_gpu():
        piece_sums(weights)
        return device.synchronized(lambda: piece_sums(weights)) / _DIGESTED
    return seconds(lambda: TensorDigest().update("w", weights)) / _DIGESTED
