"""Seconds of a weight transfer against a bare copy of the same bytes, and the share of a round that its proof takes.

Transfer: both ends of the transport in two processes on one core each, without an engine, digests at both ends included.
The other side is the least that it can cost: the bytes over one TCP connection between the same cores. On a GPU the
transport is `ipc`, and the other side a copy in the device's memory.

Proof: real rounds of preset `scenes`, whose every weight update is proven by digest and probes.
"""

from __future__ import annotations

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import device
from benchmarks.harness import Options, Row, Spread, Target, in_turn, seconds
from benchmarks.processes import ANSWER, READY, Child
from benchmarks.runs import preset, scenes_models, started
from rlsys.rounds import run_rounds
from rlsys.worlds.scenes.policy import Shape, make_policy

SHAPES = {
    "10 MB": Shape(hidden=192, layers=5, mlp=576),
    "100 MB": Shape(hidden=512, layers=8, mlp=1536),
    "1 GB": Shape(hidden=1024, layers=20, mlp=3072),
}
TARGET = Target(at_most=2.0)
NOTE = "Packed, fingerprinted at both ends and announced bucket by bucket."
PROOF_CASE = "proof of the weights in a round of preset scenes"
PROOF_TARGET = Target(at_most=0.02)


def transport(device_name: str) -> str:
    """The transport of a run on `cpu` or `gpu`."""
    return "ipc" if device_name == "gpu" else "gloo"


def _opened(name: str, file: str, core: int | None) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Pins this process; returns the transport, the weights of a file on the device, and the buckets in which they travel."""
    import torch
    from safetensors.torch import load_file

    from rlsys import registry
    from rlsys.transports.buckets import make_manifest

    if core is not None:
        os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
    registry.discover()
    made = registry.transport.make(name, host="127.0.0.1")
    weights = {name: tensor.to(device.name()) for name, tensor in load_file(file).items()}
    return made, weights, make_manifest([(n, t.dtype, t.shape) for n, t in weights.items()], made.bucket_bytes)


def serve_sender(pipe: Any, *given: Any) -> None:
    """The learner's end: says its offer, then sends the weights for every message, and says their digest."""
    made, weights, manifest = _opened(*given)
    buckets = [[(name, weights[name]) for name in bucket["names"]] for bucket in manifest["buckets"]]
    sender = made.sender(1)
    pipe.send((ANSWER, sender.offer()))
    sender.connect()
    while True:
        pipe.recv()
        for bucket in buckets:
            sender.send_bucket(bucket)
        pipe.send((ANSWER, sender.finish()["digest"]))


def serve_receiver(pipe: Any, offer: dict[str, Any], *given: Any) -> None:
    """The engine's end: takes the weights for every message, and says their digest."""
    import torch

    from rlsys.transports.base import open_receiver

    _, weights, manifest = _opened(*given)
    receiver = open_receiver({**offer, "receiver": 0}, torch.device(device.name()))
    pipe.send((ANSWER, sum(tensor.nbytes for tensor in weights.values())))
    while True:
        pipe.recv()
        for _ in receiver.receive(manifest):
            pass
        pipe.send((ANSWER, receiver.report()["digest"]))


def serve_copy_in(pipe: Any, num_bytes: int, core: int) -> None:
    """A TCP connection's receiving end: says its port, then takes so many bytes again and again into a buffer that it has
    touched, and acknowledges them.
    """
    os.sched_setaffinity(0, {core})
    buffer = memoryview(np.ones(num_bytes, np.uint8))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send((ANSWER, listener.getsockname()[1]))
        connection, _ = listener.accept()
    taken = 0
    while count := connection.recv_into(buffer[taken:]):
        taken = (taken + count) % num_bytes
        if not taken:
            connection.sendall(b"!")


def serve_copy_out(pipe: Any, num_bytes: int, core: int, port: int) -> None:
    """The sending end: seconds until all has been acknowledged, for every message."""
    os.sched_setaffinity(0, {core})
    buffer = memoryview(np.ones(num_bytes, np.uint8))
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipe.send((ANSWER, READY))
        while True:
            pipe.recv()
            took = seconds(lambda: (connection.sendall(buffer), connection.recv(1)))
            pipe.send((ANSWER, took))


def transfer(sender: Child, receiver: Child) -> float:
    """Seconds until the receiver has all, and has fingerprinted it.

    Raises:
        ValueError: something else arrived than was sent.
    """
    began = time.perf_counter()
    receiver.tell("take")
    sender.tell("send")
    arrived = receiver.hear()
    took, sent = time.perf_counter() - began, sender.hear()
    if arrived != sent:
        raise ValueError(f"{arrived} arrived where {sent} was sent")
    return took


def measure(case: str, shape: Shape, options: Options) -> Row:
    """The row of one transfer."""
    available, name = sorted(os.sched_getaffinity(0)), transport(options.device)
    engine, learner = (None, None) if device.on_gpu() else (available[0], available[-1])
    with tempfile.TemporaryDirectory(prefix="rlsys-weights-") as scratch, ExitStack() as stack:
        file = str(make_policy(Path(scratch), seed=0, shape=shape) / "model.safetensors")

        def child(*words: Any) -> Child:
            return stack.enter_context(closing(Child(*words, stops=False)))

        sender = child(serve_sender, name, file, learner)
        receiver = child(serve_receiver, sender.first(), name, file, engine)
        num_bytes = receiver.first()
        if device.on_gpu():
            other = partial(device.copy_seconds, num_bytes)
        else:
            taking = child(serve_copy_in, num_bytes, engine)
            other = partial(child(serve_copy_out, num_bytes, learner, taking.first()).say, "send")
        figures = in_turn(lambda: transfer(sender, receiver), other, repeats=options.repeats)
    return Row.versus(
        figures,
        case=case,
        other_name="copy on the device" if device.on_gpu() else "TCP copy",
        unit="s",
        target=TARGET,
        checked="in every turn the digest of what has arrived is that of what was sent",
        note=NOTE,
        extra={"gb": num_bytes / 1e9, "gb_per_s": num_bytes / 1e9 / figures[0].median},
    )


def proof(repeats: int) -> Row:
    """The row of the proof's share of a round; the first round connects, and is not counted."""
    with started(preset([]), *scenes_models()) as parts:
        with closing(run_rounds(parts)) as rounds:
            reports = list(islice(rounds, 1 + repeats))[1:]
        proofs = parts.weights.proof_s[-repeats:]
    whole = [report.seconds["round"] for report in reports]
    gap = max(report.sync.max_logprob_gap for report in reports)
    ratio = Spread.of([a / b for a, b in zip(proofs, whole, strict=True)])
    return Row.versus(
        (Spread.of(proofs), Spread.of(whole), ratio),
        case=PROOF_CASE,
        other_name="whole round",
        unit="s",
        target=PROOF_TARGET,
        checked=f"engine and learner at most {gap:.1e} nats apart on {reports[0].sync.num_probe_tokens} tokens",
        note="The proof counts from the moment when the engine holds the new weights; the digests at both ends are added.",
    )


def cases(options: Options) -> list[str]:
    """Names of all cases."""
    return [*(f"{size}: transfer by {transport(options.device)}" for size in SHAPES), PROOF_CASE]


def rows(options: Options) -> Iterator[Row]:
    """Measure."""
    for case, shape in zip(cases(options), SHAPES.values(), strict=False):
        if options.wants(case):
            yield measure(case, shape, options)
    if options.wants(PROOF_CASE):
        yield proof(options.repeats)
