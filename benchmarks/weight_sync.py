"""Seconds of a whole weight update between a real learner and a real engine, against a bare copy of the same bytes.

python -m benchmarks.weight_sync
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors.torch import load_file

from benchmarks.arguments import parse
from benchmarks.harness import Row, Spread, Target, in_turn, write
from benchmarks.socket_copy import SocketCopy
from benchmarks.weight_sync_ends import NUM_PROBES, Bare, Took, UnprovenSync, both_ends
from rlsys.app.cluster import cluster
from rlsys.worlds.scenes.policy import Shape

TITLE = "Weight updates: learner to engine over gloo, between two processes on one core each"
SHAPES = {
    "10 MB": Shape(hidden=192, layers=5, mlp=576),
    "100 MB": Shape(hidden=512, layers=8, mlp=1536),
    "1 GB": Shape(hidden=1024, layers=20, mlp=3072),
}

Compared = tuple[Spread, Spread, Spread]
"""Seconds of ours and of the other side, and their ratio."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All there is to say of one size of model."""

    num_bytes: int
    transport: Compared
    """Both ends of the transport, against the socket copy."""
    transfer: Compared
    """Into an engine, against the socket copy."""
    packed: Compared
    """Whole updates without proof, in buckets and tensor by tensor."""
    verified: Compared
    """Whole updates with and without proof."""
    proof: dict[str, float]
    took: Sequence[Took]
    """Updates with proof."""
    gaps: dict[str, float]
    """Between engine and learner after updates without proof, nats."""


def measure(shape: Shape, repeats: int) -> Measured:
    """Measure one size of model.

    Raises:
        SyncError: an update did not arrive, with or without proof.
    """
    from benchmarks.unproven import PerTensorGloo, UnprovenGloo
    from rlsys.transports.gloo import Gloo

    available = sorted(os.sched_getaffinity(0))
    cores = available[0], available[-1]
    with both_ends(shape, cores) as (ends, file):
        proven, bare = ends.sync(Gloo()), ends.sync(UnprovenGloo(), UnprovenSync)
        one_by_one = ends.sync(PerTensorGloo(), UnprovenSync)
        gaps = {"in buckets": ends.gap(bare), "per tensor": ends.gap(one_by_one)}
        took: list[Took] = []

        def update() -> Took:
            took.append(ends.publish(proven))
            return took[-1]

        # behind the file's header stand the tensors, and nothing else
        data = np.fromfile(file, np.uint8)[-update().report.num_bytes :]
        with SocketCopy(data.nbytes, core=cores[0]) as copy:
            transfer = in_turn(lambda: update().transfer, lambda: copy.send(data, core=cores[1]), repeats=repeats)
            both = Bare(Gloo(), load_file(file), cores, updates=1 + repeats)
            transport = in_turn(both.send, lambda: copy.send(data, core=cores[1]), repeats=repeats)
            both.close()
        packed = in_turn(lambda: ends.publish(bare).whole, lambda: ends.publish(one_by_one).whole, repeats=repeats)
        verified = in_turn(lambda: update().whole, lambda: ends.publish(bare).whole, repeats=repeats)
        proofs = [ends.proof() for _ in range(1 + repeats)][1:]
    return Measured(
        num_bytes=data.nbytes,
        transport=transport,
        transfer=transfer,
        packed=packed,
        verified=verified,
        proof={part: float(np.median([one[part] for one in proofs])) for part in proofs[0]},
        took=took,
        gaps=gaps,
    )


def rows(name: str, found: Measured) -> list[Row]:
    """The lines of one size of model."""
    size, report, proof = found.num_bytes / 1e9, found.took[0].report, found.proof
    gap = max(took.report.max_logprob_gap for took in found.took)
    proven = (
        f"{report.num_tensors} tensors, digest {report.digest[:12]} on both ends; engine and learner at most {gap:.1e} "
        f"nats apart on {report.num_probe_tokens} tokens"
    )
    unproven = ", ".join(f"{way} {value:.1e} nats" for way, value in found.gaps.items())
    arrived = f"after one update of an engine with other weights it is this far from the learner: {unproven}"
    whole, without = found.verified[0].median, found.verified[1].median
    return [
        _row(
            f"{name}: transfer, both ends of the transport with digest, against a socket copy",
            found.transport,
            other_name="TCP copy",
            target=Target(at_most=2.0),
            checked="in every turn the digest of what has arrived is that of what was sent",
            note="packed, fingerprinted at both ends and announced bucket by bucket, on the same two cores as the copy",
            extra={
                "gb": size,
                "gb_per_s": size / found.transport[0].median,
                "tcp_gb_per_s": size / found.transport[1].median,
            },
        ),
        _row(
            f"{name}: transfer into an engine that loads meanwhile, against a socket copy",
            found.transfer,
            other_name="TCP copy",
            target=Target(at_most=2.0),
            checked=proven,
            note=(
                f"of {found.transfer[0].median:.2g} s the transport takes {found.transport[0].median:.2g} by itself; the core "
                "that receives also writes what came into the layers, and vLLM makes each of them another packed copy"
            ),
            extra={"gb_per_s": size / found.transfer[0].median},
        ),
        _row(
            f"{name}: whole update against one broadcast per tensor, neither proven",
            found.packed,
            other_name="per tensor",
            checked=arrived,
            extra={"gb_per_s": size / found.packed[0].median},
        ),
        _row(
            f"{name}: whole update against one without digest and probes",
            found.verified,
            other_name="unproven",
            target=Target(at_most=1.1),
            checked=f"{proven}; {arrived}",
            note=(
                f"the proof adds {whole - without:.2g} s. By themselves, on one core each: the engine's pass over the "
                f"{NUM_PROBES} probes {proof['engine_probes_s']:.2g} s, the learner's, which begins when all is sent, "
                f"{proof['learner_probes_s']:.2g} s, the digest {size * proof['digest_s_per_gb']:.2g} s at each end"
            ),
            extra={**proof, "exposed_s_per_round": whole},
        ),
    ]


def _row(case: str, measured: Compared, **more: Any) -> Row:
    ours, other, ratio = measured
    return Row(case=case, ours=ours, other=other, ratio=ratio, unit="s", **more)


def main() -> None:
    options = parse(__doc__.splitlines()[0], cases=SHAPES)
    os.environ["RLSYS_PLUGINS"] = "benchmarks.unproven"  # engines must find it by name
    found: list[Row] = []
    with cluster(None):
        for name in options.cases:
            found += rows(name, measure(SHAPES[name], options.repeats))
    write("weight_sync", TITLE, found, repeats=options.written)


if __name__ == "__main__":
    main()
