"""Both ends of the `nccl` transport in two processes on the one GPU, against a copy of the same bytes on the device.

    python -m benchmarks.gpu_nccl

NCCL refuses two ranks on one GPU of one host. Each process therefore says that it is a host of its own (`NCCL_HOSTID`)
and goes over sockets: this shows that the transport works with real NCCL, and says nothing of NVLink or InfiniBand.
Without a GPU (`--tiny`) the same two processes run the `gloo` transport.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks.gpu_setup import copy_rate, on_gpu, options
from benchmarks.harness import Row, Spread, seconds, write

ALONE = {
    "NCCL_P2P_DISABLE": "1",
    "NCCL_SHM_DISABLE": "1",
    "NCCL_NET": "Socket",
    "NCCL_SOCKET_IFNAME": "lo",
    "NCCL_IB_DISABLE": "1",
    "NCCL_MAX_CTAS": "4",
}
SIZES = {"64 MB": 64 << 20, "1 GB": 1 << 30}
TINY_SIZES = {"1 MB": 1 << 20}
TENSORS = 16
DEADLINE_S = 120.0
READY = "ready"


def transport() -> Any:
    """The one that is measured."""
    from rlsys.transports.gloo import Gloo
    from rlsys.transports.nccl import Nccl

    made = Nccl if on_gpu() else Gloo
    return made(bucket_bytes=256 << 20, deadline_s=DEADLINE_S, host="127.0.0.1")


def _tensors(num_bytes: int, value: int) -> list[tuple[str, Any]]:
    import torch

    device = "cuda" if on_gpu() else "cpu"
    each = num_bytes // TENSORS // 4
    return [(f"w{i}", torch.full((each,), float(value + i), device=device)) for i in range(TENSORS)]


def _manifest(num_bytes: int) -> dict[str, Any]:
    from rlsys.transports.buckets import make_manifest

    tensors = [(name, tensor.dtype, tensor.shape) for name, tensor in _tensors(num_bytes, 0)]
    return make_manifest(tensors, transport().bucket_bytes)


def send(pipe: Any, num_bytes: int, updates: int) -> None:
    """The learner's end: begins an update when it is told to, and says its digest."""
    os.environ.update(ALONE, NCCL_HOSTID="learner")
    sender = transport().sender(1)
    pipe.send(sender.offer())
    sender.connect()
    manifest = _manifest(num_bytes)
    for update in range(updates):
        tensors = dict(_tensors(num_bytes, update))
        pipe.send(READY)
        pipe.recv()
        for bucket in manifest["buckets"]:
            sender.send_bucket([(name, tensors[name]) for name in bucket["names"]])
        pipe.send(sender.finish()["digest"])
    pipe.recv()
    sender.close()


def take(pipe: Any, offer: dict[str, Any], num_bytes: int, updates: int) -> None:
    """The engine's end: the digest of every update."""
    os.environ.update(ALONE, NCCL_HOSTID="engine")
    import torch

    from rlsys.transports.base import open_receiver

    device = torch.device("cuda", 0) if on_gpu() else torch.device("cpu")
    receiver = open_receiver({**offer, "receiver": 0}, device)
    manifest = _manifest(num_bytes)
    for _ in range(updates):
        for _ in receiver.receive(manifest):
            pass
        pipe.send(receiver.report()["digest"])
    pipe.recv()
    receiver.close()


def measure(name: str, num_bytes: int, repeats: int) -> Row:
    """
    Raises:
        RuntimeError: one end died, is late, or got something else.
    """
    context = multiprocessing.get_context("spawn")
    (ours, their_end), (other, other_end) = context.Pipe(), context.Pipe()
    updates = 1 + repeats
    sender = context.Process(target=send, args=(their_end, num_bytes, updates), daemon=True)
    sender.start()
    their_end.close()
    ends = [sender]
    try:
        receiver = context.Process(target=take, args=(other_end, _next(ours), num_bytes, updates), daemon=True)
        receiver.start()
        other_end.close()
        ends.append(receiver)
        rates, copies = [], []
        for _ in range(updates):
            _next(ours)  # it is ready
            took = seconds(lambda: _update(ours, other))
            rates.append(num_bytes / took / 1e9)
            copies.append(copy_rate(num_bytes) / 1e9)
        for pipe in (ours, other):
            pipe.send("end")
    finally:
        for process in ends:
            process.join(5)
            process.kill()
    return Row(
        case=f"{name} in {TENSORS} tensors",
        ours=Spread.of(rates[1:]),
        other=Spread.of(copies[1:]),
        other_name="copy on the device" if on_gpu() else "copy in memory",
        ratio=Spread.of([a / b for a, b in zip(rates[1:], copies[1:], strict=True)]),
        unit="GB/s",
        checked=f"the digests of all {updates} updates are the same on both ends",
        note="Two processes share the GPU in turns and talk over sockets: no measure of NCCL between GPUs.",
    )


def _update(ours: Any, other: Any) -> None:
    """One update, until the other end has all of it."""
    ours.send("go")
    digest, arrived = _next(ours), _next(other)
    if arrived != digest:
        raise RuntimeError(f"digest {digest} was sent, {arrived} arrived")


def _next(pipe: Any) -> Any:
    try:
        if pipe.poll(DEADLINE_S):
            return pipe.recv()
    except EOFError:
        raise RuntimeError("one end of the transport died") from None
    raise RuntimeError(f"one end of the transport said nothing for {DEADLINE_S:g} s")


def main(words: Sequence[str] | None = None) -> int:
    """Measure all sizes. What cannot be had (NCCL may refuse) is said, and nothing is written."""
    given = options(__doc__, words, cases=lambda tiny: TINY_SIZES if tiny else SIZES)
    if given is None:
        return 0
    rows = []
    for name, num_bytes in (TINY_SIZES if given.tiny else SIZES).items():
        if name in given.cases:
            try:
                rows.append(measure(name, num_bytes, given.repeats))
            except RuntimeError as error:
                print(f"{name}: two NCCL ranks on one GPU could not be had: {error}", file=sys.stderr)
                return 1
    write("gpu_nccl", "Transport `nccl` between two processes on one GPU", rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
