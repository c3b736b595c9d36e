"""Weight transport over TCP for processes without GPUs: one gloo broadcast per bucket."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from rlsys import registry
from rlsys.common.lazy import dist, torch
from rlsys.transports import base, rendezvous
from rlsys.transports.buckets import Named, describe, flat_bytes, pack_into
from rlsys.transports.memory import HostMemory


@registry.transport("gloo")
@dataclass(kw_only=True)
class Gloo:
    """A broadcast by gloo, which works on any machine."""

    bucket_bytes: int = 8 << 20
    """Size of a bucket in bytes. A bucket of this size is still in the core's cache when its digest is computed."""
    deadline_s: float = 120.0
    """Time limit of the rendezvous, and of each bucket."""
    host: str | None = None
    """Address under which the engines reach the learner's machine; taken from the routing table if `null`."""

    def __post_init__(self) -> None:
        base.check_options(self)

    def sender(self, num_receivers: int) -> GlooSender:
        """The sender in the learner, for `num_receivers` receivers."""
        return GlooSender(name="gloo", num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host)

    @staticmethod
    def receiver(offer: dict[str, Any], device: torch.device) -> GlooReceiver:
        """The receiver in an engine."""
        return GlooReceiver(offer, device)


class GlooSender(base.Sender):
    """The sender: rank 0 of the group."""

    _group: dist.ProcessGroupGloo | None = None
    _pending: tuple[dist.Work, torch.Tensor] | None = None

    def connect(self) -> None:
        self._memory = HostMemory()
        rendezvous.gather(self.store, self.num_receivers + 1, self.deadline_s)
        self._group = _group(self.store, 0, self.num_receivers + 1, self.deadline_s, self._offer["host"])

    def _leave(self) -> None:
        held = [self._pending, self._group]
        self._pending = self._group = None
        # Freeing a group waits until its last broadcast has ended, which without a receiver is at the deadline. Therefore a
        # thread frees it.
        threading.Thread(target=held.clear, name="gloo-leave").start()

    def _pack(self, tensors: Sequence[Named]) -> torch.Tensor:
        return pack_into(self._memory.take(flat_bytes(describe(tensors))), tensors)

    def _post(self, flat: torch.Tensor) -> None:
        self._pending = (_broadcast(self._group, flat, self.deadline_s), flat)

    def _settle(self) -> None:
        if self._pending is not None:
            _wait(self._pending[0], self.deadline_s)
            self._pending = None


class GlooReceiver(base.Receiver):
    """A receiver: rank 1 and above of the group."""

    def __init__(self, offer: dict[str, Any], device: torch.device) -> None:
        super().__init__(offer, device)
        self._memory = HostMemory()
        rendezvous.gather(self.store, self.world_size, self.deadline_s)
        address = rendezvous.own_address((offer["host"], offer["port"]))
        self._group: dist.ProcessGroupGloo | None = _group(
            self.store, self.rank, self.world_size, self.deadline_s, address
        )

    def _leave(self) -> None:
        self._group = None

    def _post(self, num_bytes: int) -> tuple[dist.Work, torch.Tensor]:
        flat = self._memory.take(num_bytes)
        return _broadcast(self._group, flat, self.deadline_s), flat

    def _settle(self, pending: tuple[dist.Work, torch.Tensor]) -> torch.Tensor:
        work, flat = pending
        _wait(work, self.deadline_s)
        return flat.to(self.device)


def _group(store: dist.Store, rank: int, size: int, deadline_s: float, address: str) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()
    options._timeout = timedelta(seconds=deadline_s)
    # The interface is given by address: gloo's default resolves the host name, which is often the loopback address.
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    try:
        return dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), rank, size, options)
    except RuntimeError as error:
        raise rendezvous.failure(error, f"gloo rendezvous of rank {rank} of {size}", deadline_s) from error


def _broadcast(group: dist.ProcessGroupGloo, flat: torch.Tensor, deadline_s: float) -> dist.Work:
    try:
        return group.broadcast(flat, 0)
    except RuntimeError as error:
        raise rendezvous.failure(error, f"broadcast of {flat.numel()} bytes", deadline_s) from error


def _wait(work: dist.Work, deadline_s: float) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise rendezvous.failure(error, "broadcast of a bucket", deadline_s) from error
