"""Seconds of a whole weight update between a real learner and a real engine, against a bare copy of the same bytes.

python -m benchmarks.weight_sync
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.arguments import parse
from benchmarks.harness import Row, Target, in_turn, seconds, write
from benchmarks.socket_copy import SocketCopy
from rlsys.app.cluster import cluster
from rlsys.placement import Placement
from rlsys.records import Probe, SyncReport
from rlsys.scenes.policy import Shape, make_policy
from rlsys.sync import WeightSync

TITLE = "Weight updates: learner to engine over gloo, between two processes on one core each"
SHAPES = {
    "10 MB": Shape(hidden=192, layers=5, mlp=576),
    "100 MB": Shape(hidden=512, layers=8, mlp=1536),
    "1 GB": Shape(hidden=1024, layers=20, mlp=3072),
}
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

    def __init__(self, model: Path, cores: tuple[int, int]) -> None:
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
                current=lambda: (str(model), 0),
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

    def proof(self) -> dict[str, float]:
        """Seconds of one proof's parts, each alone: the probes in engine and learner, the digest on one core."""
        from rlsys.transports.digest import TensorDigest

        probes, weights = self.rollouts.probes(), torch.ones(64 << 20, dtype=torch.uint8)
        digest = seconds(lambda: TensorDigest().update("w", weights)) / weights.numel()
        return {
            "engine_probes_s": seconds(lambda: self.rollouts.score(probes)),
            "learner_probes_s": seconds(lambda: self.learner.score(probes)),
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
    from rlsys.transports.ends import open_receiver

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
        model = make_policy(scratch, seed=0, shape=shape)
        ends = Ends(model, cores)
        try:
            yield ends, model / "model.safetensors"
        finally:
            ends.close()


def measure(name: str, shape: Shape, repeats: int) -> list[Row]:
    """The rows of one size of model."""
    from benchmarks.unproven import PerTensorGloo, UnprovenGloo
    from rlsys.transports.gloo import Gloo

    available = sorted(os.sched_getaffinity(0))
    cores = available[0], available[-1]
    with both_ends(shape, cores) as (ends, file):
        proven, bare = ends.sync(Gloo()), ends.sync(UnprovenGloo(), UnprovenSync)
        one_by_one = ends.sync(PerTensorGloo(), UnprovenSync)
        first = ends.publish(proven)
        # behind the file's header stand the tensors, and nothing else
        data = np.fromfile(file, np.uint8)[-first.report.num_bytes :]
        took: list[Took] = []

        def ours(part: Callable[[Took], float]) -> Callable[[], float]:
            def work() -> float:
                took.append(ends.publish(proven))
                return part(took[-1])

            return work

        with SocketCopy(data.nbytes, core=cores[0]) as copy:
            copied = in_turn(ours(lambda t: t.transfer), lambda: copy.send(data, core=cores[1]), repeats=repeats)
            transport = Bare(Gloo(), load_file(file), cores, updates=1 + repeats)
            moved = in_turn(transport.send, lambda: copy.send(data, core=cores[1]), repeats=repeats)
            transport.close()
        packed = in_turn(lambda: ends.publish(bare).whole, lambda: ends.publish(one_by_one).whole, repeats=repeats)
        verified = in_turn(ours(lambda t: t.whole), lambda: ends.publish(bare).whole, repeats=repeats)
        proofs = [ends.proof() for _ in range(1 + repeats)][1:]
        proof = {part: float(np.median([one[part] for one in proofs])) for part in proofs[0]}
    gap, report = max(t.report.max_logprob_gap for t in took), first.report
    checked = (
        f"{report.num_tensors} tensors, digest {report.digest[:12]} on both ends; engine and learner at most {gap:.1e} "
        f"nats apart on {report.num_probe_tokens} tokens"
    )
    size = data.nbytes / 1e9
    unit, wholes = "s", [t.whole for t in took]
    return [
        _row(
            f"{name}: transfer, both ends of the transport with digest, against a socket copy",
            moved,
            other_name="TCP copy",
            unit=unit,
            target=Target(at_most=2.0),
            note="packed, fingerprinted at both ends and announced bucket by bucket, on the same two cores as the copy",
            extra={"gb": size, "gb_per_s": size / moved[0].median, "tcp_gb_per_s": size / moved[1].median},
        ),
        _row(
            f"{name}: transfer into an engine that loads meanwhile, against a socket copy",
            copied,
            other_name="TCP copy",
            unit=unit,
            target=Target(at_most=2.0),
            checked=checked,
            note=(
                "the engine takes a bucket no faster than vLLM loads it, on the same core: its layerwise reload writes every "
                "weight into fresh memory, packs it and puts it in place"
            ),
            extra={"gb_per_s": size / copied[0].median},
        ),
        _row(
            f"{name}: whole update against one broadcast per tensor, neither proven",
            packed,
            other_name="per tensor",
            unit=unit,
            checked=f"{report.num_tensors} tensors of the same names and shapes on both sides",
            extra={"gb_per_s": size / packed[0].median},
        ),
        _row(
            f"{name}: whole update against one without digest and probes",
            verified,
            other_name="unproven",
            unit=unit,
            target=Target(at_most=1.1),
            note=(
                f"the engine's pass over the {NUM_PROBES} probes takes {proof['engine_probes_s']:.2g} s by itself on its one "
                f"core; the learner's is hidden behind the engine's loading, and the digest takes "
                f"{size * proof['digest_s_per_gb']:.2g} s at each end"
            ),
            extra={**proof, "exposed_s_per_round": float(np.median(wholes))},
        ),
    ]


def _row(case: str, measured: tuple, **more: Any) -> Row:
    ours, other, ratio = measured
    return Row(case=case, ours=ours, other=other, ratio=ratio, **more)


def main() -> None:
    options = parse(__doc__)
    os.environ["RLSYS_PLUGINS"] = "benchmarks.unproven"  # engines must find it by name
    chosen = {name: shape for name, shape in SHAPES.items() if options.only in name}
    rows: list[Row] = []
    with cluster(None):
        for name, shape in chosen.items():
            rows += measure(name, shape, options.repeats)
    write("weight_sync", TITLE, rows, repeats=options.written)


if __name__ == "__main__":
    main()
