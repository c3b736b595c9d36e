"""What all transports share: the two ends of one (`meeting.py`: how they find each other).

    transport.sender(num_receivers=2)                       in the learner
        .offer()          -> dict, given to every receiver as {**offer, "receiver": 0}, {**offer, "receiver": 1}
        .connect()        wait for all receivers
        .send_bucket(...) once per bucket of the manifest, in order; returns while the bucket is on its way
        .finish()         -> what was sent
        .close()
    open_receiver(offer, device)                            in every engine process
        .receive(manifest, keep=False) -> the same buckets, one after the other, each valid until the next
        .report()          -> what came
        .close()

A sender outlives an update: `send_bucket` ... `finish` may follow each other many times on one connection.
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


class Tally:
    """Counts and fingerprints the tensors of one update."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.num_bytes = 0
        self._digest = TensorDigest()

    def add(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """Add a bucket's tensors, packed."""
        self.add_values(flat, bucket)
        self.names.extend(bucket["names"])
        self.num_bytes += payload_bytes(bucket)

    def add_values(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """Add names and values to the fingerprint."""
        for entry in described_bytes(flat.cpu(), bucket):
            self._digest.update_bytes(*entry)

    def report(self) -> dict[str, Any]:
        """`names`, `num_tensors`, `num_bytes` (alignment not counted) and `digest`."""
        return {
            "names": self.names,
            "num_tensors": len(self.names),
            "num_bytes": self.num_bytes,
            "digest": self._digest.hexdigest(),
        }


class DeviceTally(Tally):
    """Of buckets on a GPU: what is fingerprinted are names, dtypes, shapes and the sums of a bucket's pieces."""

    def __init__(self) -> None:
        super().__init__()
        self._sums: list[tuple[Bucket, torch.Tensor]] = []

    def add_values(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """As `Tally`; nothing waits for the GPU here."""
        self._sums.append((bucket, piece_sums(flat)))

    def report(self) -> dict[str, Any]:
        """As `Tally`."""
        sums, self._sums = self._sums, []
        for bucket, values in sums:
            for name, dtype, shape in zip(bucket["names"], bucket["dtypes"], bucket["shapes"], strict=True):
                self._digest.update_bytes(name, dtype, tuple(shape), memoryview(b""))
            self._digest.update("", values)
        return super().report()


class Sender:
    """The learner's end. A transport implements `connect`, `_pack`, `_post`, `_settle` and `_leave`."""

    tally: type[Tally] = Tally

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
        self._tally = self.tally()
        self._started: float | None = None
        self._failure: SyncError | None = None
        self._posted = 0
        """Buckets posted so far, over all updates."""

    def offer(self) -> dict[str, Any]:
        """Where receivers find this sender; plain values. The caller adds `receiver`, a number from 0, for each."""
        return dict(self._offer)

    def connect(self) -> None:
        """Wait until every receiver has joined.

        Raises:
            SyncTimeout: not all came before the deadline.
        """
        raise NotImplementedError

    def send_bucket(self, tensors: Sequence[Named]) -> None:
        """Hand over one bucket. It is copied first, so the tensors may change as soon as this returns.

        Raises nothing: where a learner's ranks gather every bucket together, one that leaves in the middle would let the
        others wait for ever. After a failure nothing more is sent, and `finish` raises it.
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
        # Announced before it is sent: libraries abort the process, or hang, where the two ends disagree about a size.
        self.store.set(f"bucket/{self._posted}", str(flat.numel()))
        self._post(flat)
        self._posted += 1
        # Hashed while it travels, and from the copy that travels: what is reported is what was sent.
        self._tally.add(flat, describe(tensors))

    def finish(self) -> dict[str, Any]:
        """Wait for the last bucket: `names`, `num_tensors`, `num_bytes`, `digest` and `seconds` of this update.

        Raises:
            SyncError: a receiver is lost. This sender is then of no more use than to be closed.
            SyncTimeout: a bucket did not arrive before the deadline.
        """
        if self._failure is not None:
            raise self._failure
        self._settle()
        seconds = 0.0 if self._started is None else time.monotonic() - self._started
        report = {**self._tally.report(), "seconds": seconds}
        self._tally, self._started = self.tally(), None
        return report

    def close(self) -> None:
        """Leave; receivers that still wait get an error."""
        self._leave()
        self.store = None

    def _leave(self) -> None:
        raise NotImplementedError

    def _pack(self, tensors: Sequence[Named]) -> torch.Tensor:
        raise NotImplementedError

    def _post(self, flat: torch.Tensor) -> None:
        raise NotImplementedError

    def _settle(self) -> None:
        """Wait until what `_post` started has arrived; nothing to do if there is nothing."""
        raise NotImplementedError


class Receiver:
    """An engine's end. A transport implements `_post`, `_settle` and `_leave`, and `_used` if others wait for that."""

    tally: type[Tally] = Tally
    _keep = True
    """Whether the tensors of this update may be kept."""

    def __init__(self, offer: dict[str, Any], device: torch.device) -> None:
        """
        Raises:
            SyncTimeout: the sender is not there before the deadline.
        """
        self.device = device
        self.rank = offer["receiver"] + 1
        self.world_size = offer["num_receivers"] + 1
        self.deadline_s = offer["deadline_s"]
        self.store = join_store(offer["host"], offer["port"], self.deadline_s)
        self._tally = self.tally()
        self._posted = 0
        """Buckets asked for so far, over all updates."""

    def receive(self, manifest: dict[str, list[Bucket]], *, keep: bool = True) -> Iterator[list[Named]]:
        """The buckets of an update, in order; while one is used, the next is on its way.

        Args:
            keep: every bucket has memory of its own, so that its tensors may be kept. Otherwise they may be the sender's own,
                and are only valid until the next bucket is asked for.

        Raises:
            SyncError: the sender is lost.
            SyncTimeout: a bucket did not come before the deadline.
        """
        self._tally, self._keep = self.tally(), keep
        ahead: list[Any] = []
        for number, bucket in enumerate(manifest["buckets"]):
            flat = self._settle(ahead.pop() if ahead else self._ask(bucket))
            following = manifest["buckets"][number + 1 : number + 2]
            if following and self.store.check([f"bucket/{self._posted}"]):
                ahead.append(self._ask(following[0]))
            tensors = unpack(flat, bucket)
            self._tally.add(flat, bucket)
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
        """`names`, `num_tensors`, `num_bytes` and `digest` of what came in the last update."""
        return self._tally.report()

    def close(self) -> None:
        """Leave."""
        self._leave()
        self.store = None

    def _leave(self) -> None:
        raise NotImplementedError

    def _post(self, num_bytes: int) -> Any:
        """Begin to receive a buffer; what is returned goes to `_settle`."""
        raise NotImplementedError

    def _settle(self, pending: Any) -> torch.Tensor:
        """uint8 [num_bytes], complete."""
        raise NotImplementedError

    def _used(self) -> None:
        """What came last is of no more use here, unless it is kept."""


def open_receiver(offer: dict[str, Any], device: torch.device) -> Receiver:
    """Join the group of the sender that made `offer`.

    Raises:
        ConfigError: no such transport here.
        SyncError, SyncTimeout: the group did not come together.
    """
    name = offer["transport"]
    if name not in registry.transport:
        registry.discover()
    if name not in registry.transport:
        raise ConfigError(f"no transport named {name!r}; there are: {', '.join(sorted(registry.transport))}")
    return registry.transport[name].receiver(offer, device)


def check_options(transport: Any) -> None:
    """
    Raises:
        ConfigError: `bucket_bytes` or `deadline_s` is not positive.
    """
    for name in ("bucket_bytes", "deadline_s"):
        if getattr(transport, name) <= 0:
            raise ConfigError(f"transport.{name} must be > 0, got {getattr(transport, name)}")
