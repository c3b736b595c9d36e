"""Base classes of all transports: sender and receiver. `rendezvous.py` shows how the two find each other.

    transport.sender(num_receivers=2)                       in the learner
        .offer()          -> dict, given to every receiver as {**offer, "receiver": 0}, {**offer, "receiver": 1}
        .connect()        wait for all receivers
        .send_bucket(...) once per bucket of the manifest, in order; returns while the bucket is still being sent
        .finish()         -> report of the sent weights
        .close()
    open_receiver(offer, device)                            in every engine process
        .receive(manifest, keep=False) -> the same buckets, one after the other, each valid until the next
        .report()          -> report of the received weights
        .close()

One connection serves many updates: the sequence `send_bucket` ... `finish` may be repeated.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from rlsys import registry
from rlsys.common.lazy import torch
from rlsys.errors import ConfigError, SyncError
from rlsys.transports.buckets import Bucket, Named, describe, described_bytes, flat_bytes, payload_bytes, unpack
from rlsys.transports.digest import TensorDigest, piece_sums
from rlsys.transports.rendezvous import failure, join_store, own_address, serve_store


class TransferMetrics:
    """Counts the tensors of one update, and computes their digest."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.num_bytes = 0
        self._digest = TensorDigest()

    def add(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """Add the packed tensors of a bucket."""
        self.add_values(flat, bucket)
        self.names.extend(bucket["names"])
        self.num_bytes += payload_bytes(bucket)

    def add_values(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """Add the names and values of a bucket's tensors to the digest."""
        for entry in described_bytes(flat.cpu(), bucket):
            self._digest.update_bytes(*entry)

    def report(self) -> dict[str, Any]:
        """The report of the update: `names`, `num_tensors`, `num_bytes` (without alignment) and `digest`."""
        return {
            "names": self.names,
            "num_tensors": len(self.names),
            "num_bytes": self.num_bytes,
            "digest": self._digest.hexdigest(),
        }


class DeviceTransferMetrics(TransferMetrics):
    """Metrics of buckets on a GPU. The digest covers names, dtypes, shapes and the sums of a bucket's pieces (`piece_sums`)."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: list[tuple[Bucket, torch.Tensor]] = []

    def add_values(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """As `TransferMetrics.add_values`, without waiting for the GPU."""
        self._sums.append((bucket, piece_sums(flat)))

    def report(self) -> dict[str, Any]:
        """As `TransferMetrics.report`; this call waits for the GPU."""
        sums, self._sums = self._sums, []
        for bucket, values in sums:
            for name, dtype, shape in zip(bucket["names"], bucket["dtypes"], bucket["shapes"], strict=True):
                self._digest.update_bytes(name, dtype, tuple(shape), memoryview(b""))
            self._digest.update("", values)
        return super().report()


class Sender:
    """The sender in the learner. A transport implements `connect`, `_pack`, `_post`, `_settle` and `_leave`."""

    metrics: type[TransferMetrics] = TransferMetrics

    def __init__(self, *, name: str, num_receivers: int, deadline_s: float, host: str | None) -> None:
        self.num_receivers = num_receivers
        self.deadline_s = deadline_s
        self.store = serve_store(deadline_s)
        self._offer = {
            "transport": name,
            "host": host or own_address(),
            "port": self.store.port,
            "num_receivers": num_receivers,
            "deadline_s": deadline_s,
        }
        self._metrics = self.metrics()
        self._started: float | None = None
        self._failure: SyncError | None = None
        self._posted = 0
        """Number of buckets posted so far, over all updates."""

    def offer(self) -> dict[str, Any]:
        """The address of this sender for its receivers, in plain values. The caller adds `receiver`, the number of the receiver
        from 0."""
        return dict(self._offer)

    def connect(self) -> None:
        """Wait until every receiver has joined.

        Raises:
            SyncTimeout: not all receivers have joined before the deadline.
        """
        raise NotImplementedError

    def send_bucket(self, tensors: Sequence[Named]) -> None:
        """Send one bucket. The tensors are copied first, so they may change as soon as this returns.

        The method never raises a `SyncError`: if the learner's ranks gather every bucket together, a rank that stopped in the
        middle would let the others wait forever. After an error nothing more is sent, and `finish` raises the error.
        """
        if self._started is None:
            self._started = time.monotonic()
        if self._failure is None:
            try:
                self._send(tensors)
            except SyncError as error:
                self._failure = error

    def _send(self, tensors: Sequence[Named]) -> None:
        flat = self._pack(tensors)
        self._settle()
        # The size is announced before the bucket is sent: communication libraries abort the process, or hang, if sender and
        # receiver disagree about a size.
        self.store.set(f"bucket/{self._posted}", str(flat.numel()))
        self._post(flat)
        self._posted += 1
        # The digest is computed while the bucket is being sent, and from the copy that is sent, so it describes what was sent.
        self._metrics.add(flat, describe(tensors))

    def finish(self) -> dict[str, Any]:
        """Wait until the last bucket has arrived.

        Returns:
            A report with `names`, `num_tensors`, `num_bytes`, `digest` and `seconds` of this update.

        Raises:
            SyncError: a receiver is lost. The sender can then only be closed.
            SyncTimeout: a bucket did not arrive before the deadline.
        """
        if self._failure is not None:
            raise self._failure
        self._settle()
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        report = {**self._metrics.report(), "seconds": seconds}
        self._metrics, self._started = self.metrics(), None
        return report

    def close(self) -> None:
        """Leave the group. Receivers that still wait get an error."""
        self._leave()
        self.store = None

    def _leave(self) -> None:
        raise NotImplementedError

    def _pack(self, tensors: Sequence[Named]) -> torch.Tensor:
        raise NotImplementedError

    def _post(self, flat: torch.Tensor) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """Wait until the bucket that `_post` started to send has arrived; return at once if there is none."""
        raise NotImplementedError


class Receiver:
    """The receiver in an engine. A transport implements `_post`, `_settle` and `_leave`, and also `_used` if its sender waits
    until a bucket is used.
    """

    metrics: type[TransferMetrics] = TransferMetrics
    _keep = True
    """Whether the caller may keep the tensors of this update."""

    def __init__(self, offer: dict[str, Any], device: torch.device) -> None:
        """
        Raises:
            SyncTimeout: the sender does not respond before the deadline.
        """
        self.device = device
        self.rank = offer["receiver"] + 1
        self.world_size = offer["num_receivers"] + 1
        self.deadline_s = offer["deadline_s"]
        self.store = join_store(offer["host"], offer["port"], self.deadline_s)
        self._metrics = self.metrics()
        self._posted = 0
        """Number of buckets requested so far, over all updates."""

    def receive(self, manifest: dict[str, list[Bucket]], *, keep: bool = True) -> Iterator[list[Named]]:
        """The buckets of an update, in order. While the caller uses a bucket, the next one is already being received.

        Args:
            keep: whether the caller may keep the tensors, in which case every bucket gets memory of its own. Otherwise the
                tensors may be in the sender's memory, and are only valid until the next bucket is requested.

        Raises:
            SyncError: the sender is lost, or a bucket has another size than the manifest says.
            SyncTimeout: a bucket did not arrive before the deadline.
        """
        self._metrics, self._keep = self.metrics(), keep
        ahead: list[Any] = []
        for number, bucket in enumerate(manifest["buckets"]):
            flat = self._settle(ahead.pop() if ahead else self._ask(bucket))
            following = manifest["buckets"][number + 1 : number + 2]
            if following and self.store.check([f"bucket/{self._posted}"]):
                ahead.append(self._ask(following[0]))
            tensors = unpack(flat, bucket)
            self._metrics.add(flat, bucket)
            yield tensors
            self._used()

    def _ask(self, bucket: Bucket) -> Any:
        expected = flat_bytes(bucket)
        try:
            announced = int(self.store.get(f"bucket/{self._posted}"))
        except RuntimeError as error:
            raise failure(error, f"waiting for bucket {self._posted}", self.deadline_s) from error
        if announced != expected:
            names = ", ".join(bucket["names"][:3])
            raise SyncError(
                f"a bucket of {announced} bytes is sent where the manifest has one of {expected}: {names} ..."
            )
        pending = self._post(expected)
        self._posted += 1
        return pending

    def report(self) -> dict[str, Any]:
        """`names`, `num_tensors`, `num_bytes` and `digest` of the tensors received in the last update."""
        return self._metrics.report()

    def close(self) -> None:
        """Leave the group."""
        self._leave()
        self.store = None

    def _leave(self) -> None:
        raise NotImplementedError

    def _post(self, num_bytes: int) -> Any:
        """Begin to receive a buffer. The return value is passed to `_settle`."""
        raise NotImplementedError

    def _settle(self, pending: Any) -> torch.Tensor:
        """Wait until a buffer is complete, and return it as uint8 [num_bytes]."""
        raise NotImplementedError

    def _used(self) -> None:
        """Note that the caller has used the last bucket. The default does nothing."""


def open_receiver(offer: dict[str, Any], device: torch.device) -> Receiver:
    """Join the group of the sender that made `offer`.

    Raises:
        ConfigError: this process does not know the transport.
        SyncError, SyncTimeout: the receiver could not join the group.
    """
    name = offer["transport"]
    if name not in registry.transport:
        registry.discover()
    if name not in registry.transport:
        raise ConfigError(f"no transport named {name!r}; there are: {', '.join(sorted(registry.transport))}")
    return registry.transport[name].receiver(offer, device)


def check_options(transport: Any) -> None:
    """Check the options that all transports have.

    Raises:
        ConfigError: `bucket_bytes` or `deadline_s` is not positive.
    """
    for name in ("bucket_bytes", "deadline_s"):
        if getattr(transport, name) <= 0:
            raise ConfigError(f"transport.{name} must be > 0, got {getattr(transport, name)}")
