"""Both ends of a weight update, to be timed: with an engine and a learner, and of the transport alone."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import seconds
from rlsys.placement import Placement
from rlsys.records import Probe, SyncReport
from rlsys.run.sync import WeightSync
from rlsys.worlds.scenes.policy import Shape, make_policy

NUM_PROBES = 4
"""As many as a run has by default."""
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Took:
    """Seconds of one update and of its parts."""

    whole: float
    """From the call of `publish` to its return: what a round waits for."""
    transfer: float
    """Gathering, sending and loading, digests included, until the engine says that it holds all."""
    report: SyncReport


class TimedSync(WeightSync):
    """The real one, which remembers how long the engines took to hold the new weights."""

    transfer_s = 0.0

    def __init__(self, *, rollouts: Any, **given: Any) -> None:
        super().__init__(rollouts=_Clocked(rollouts, self), **given)


class _Clocked:
    """A rollout stage whose updates are timed."""

    def __init__(self, stage: Any, sync: TimedSync) -> None:
        self._stage, self._sync = stage, sync

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)

    def update(self, *arguments: Any) -> list[dict[str, Any]]:
        """As the stage's."""
        started = time.perf_counter()
        reports = self._stage.update(*arguments)
        self._sync.transfer_s = time.perf_counter() - started
        return reports


class UnprovenSync(TimedSync):
    """Without probes; with `UnprovenGloo` also without digest."""

    def _probes(self, version: int) -> list[Probe]:
        return []

    def _largest_gap(self, *_: Any) -> float:
        return float("nan")


class Ends:
    """A real engine in a Ray actor on one core and a real learner's rank on the other."""

    def __init__(self, model: Path, other: Path, cores: tuple[int, int]) -> None:
        """
        Args:
            model: what the learner has.
            other: with what the engine starts: what it has afterwards, it has been sent.
        """
        from actors.engines import discover, engine
        from actors.stages import RolloutStage
        from learners.config import LearnerConfig
        from learners.group import LearnerGroup
        from rlsys.app.starting import start_together
        from rlsys.objectives.dpo import DPO
        from rlsys.prompts.scenes import ScenesPrompts

        discover()
        places = [Placement(num_cpus=0.5, cores=(core,)) for core in cores]
        self.rollouts, self.learner = start_together(
            lambda: RolloutStage(
                engine=engine.make("vllm", max_model_len=512, kv_cache_gib=0.25),
                current=lambda: (str(other), 0),
                placements=places[:1],
                seed=0,
                probe_prompts=list(ScenesPrompts().take(0, NUM_PROBES)),
            ),
            lambda: LearnerGroup(LearnerConfig(), DPO(), str(model), placements=places[1:]),
        )
        self._version = 0

    def publish(self, sync: TimedSync) -> Took:
        """One update over a connection that stands already, as it does in every round but the first."""
        self._version += 2
        sync._connected = ()  # another way of sending had its turn
        sync.publish(self._version - 1)
        started = time.perf_counter()
        report = sync.publish(self._version)
        whole = time.perf_counter() - started
        return Took(whole=whole, transfer=sync.transfer_s, report=report)

    def gap(self, sync: TimedSync) -> float:
        """Largest difference between engine and learner on a probe's token, nats, after an update of an engine that had
        other weights.

        Raises:
            SyncError: they are further apart than weights may be that have arrived.
        """
        self.rollouts._pool.replace(self.rollouts._pool.slots)
        self.publish(sync)
        probes = self.rollouts.probes()
        found = self.rollouts.logprobs(probes), self.learner.logprobs(probes)
        return WeightSync._largest_gap(sync, self._version, probes, *found)

    def proof(self) -> dict[str, float]:
        """Seconds of one proof's parts, each alone: the probes in engine and learner, the digest on one core."""
        from rlsys.transports.digest import TensorDigest

        probes, weights = self.rollouts.probes(), torch.ones(64 << 20, dtype=torch.uint8)
        digest = seconds(lambda: TensorDigest().update("w", weights)) / weights.numel()
        return {
            "engine_probes_s": seconds(lambda: self.rollouts.logprobs(probes)),
            "learner_probes_s": seconds(lambda: self.learner.logprobs(probes)),
            "digest_s_per_gb": 1e9 * digest,
        }

    def sync(self, transport: Any, kind: type[TimedSync] = TimedSync) -> TimedSync:
        """A way of updating these two."""
        return kind(learner=self.learner, rollouts=self.rollouts, transport=transport, tolerance=TOLERANCE)

    def close(self) -> None:
        """End both."""
        self.learner.close()
        self.rollouts.close()


class Bare:
    """Both ends of the transport in two processes, on the cores of learner and engine, without an engine that loads."""

    def __init__(self, transport: Any, weights: dict[str, torch.Tensor], cores: tuple[int, int], updates: int) -> None:
        """
        Args:
            updates: how often `send` will be called.
        """
        from rlsys.transports.buckets import make_manifest

        manifest = make_manifest([(n, t.dtype, t.shape) for n, t in weights.items()], transport.bucket_bytes)
        self._buckets = [[(name, weights[name]) for name in bucket["names"]] for bucket in manifest["buckets"]]
        self._affinity = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {cores[1]})  # also of the threads that the sender starts
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        self._sender = transport.sender(1)
        offer = {**self._sender.offer(), "receiver": 0}
        context = multiprocessing.get_context("spawn")
        self._taken, there = context.Pipe(duplex=False)
        self._process = context.Process(target=_take, args=(offer, manifest, cores[0], updates, there), daemon=True)
        self._process.start()
        self._sender.connect()

    def send(self) -> float:
        """Seconds of one update, until the other process has all and has fingerprinted it."""
        started = time.perf_counter()
        for bucket in self._buckets:
            self._sender.send_bucket(bucket)
        sent = self._sender.finish()
        digest = self._taken.recv()
        seconds = time.perf_counter() - started
        if digest != sent["digest"]:
            raise ValueError(f"{digest} arrived where {sent['digest']} was sent")
        return seconds

    def close(self) -> None:
        """End the other process."""
        self._process.join(10)
        self._sender.close()
        torch.set_num_threads(self._threads)
        os.sched_setaffinity(0, self._affinity)


def _take(offer: dict[str, Any], manifest: dict[str, Any], core: int, updates: int, taken: Any) -> None:
    from rlsys.transports.base import open_receiver

    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    receiver = open_receiver(offer, torch.device("cpu"))
    for _ in range(updates):
        for _ in receiver.receive(manifest):
            pass
        taken.send(receiver.report()["digest"])
    receiver.close()


@contextmanager
def both_ends(shape: Shape, cores: tuple[int, int]) -> Iterator[tuple[Ends, Path]]:
    """The two, and the file of their weights."""
    with tempfile.TemporaryDirectory(prefix="rlsys-sync-") as scratch:
        folders = Path(scratch, "learner"), Path(scratch, "engine")
        model, other = (make_policy(folder, seed=seed, shape=shape) for seed, folder in enumerate(folders))
        ends = Ends(model, other, cores)
        try:
            yield ends, model / "model.safetensors"
        finally:
            ends.close()
