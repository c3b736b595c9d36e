"""Weights over TCP between processes without GPUs: one gloo broadcast per bucket."""

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
    """Broadcast by gloo, on any machine."""

    bucket_bytes: int = 8 << 20
    """Tensors that travel together, bytes. Small enough to be still in a core's cache when they are fingerprinted."""
    deadline_s: float = 120.0
    """For the rendezvous, and for each bucket."""
    host: str | None = None
    """Address of the learner's machine for the engines; found from the routing table if `null`."""

    def __post_init__(self) -> None:
        base.check_options(self)

    def sender(self, num_receivers: int) -> GlooSender:
        """The learner's end for so many receivers."""
        return GlooSender(name="gloo", num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host)

    @staticmethod
    def receiver(offer: dict[str, Any], device: torch.device) -> GlooReceiver:
        """An engine's end."""
        return GlooReceiver(offer, device)


class GlooSender(base.Sender):
    """Rank 0 of the group."""

    _group: dist.ProcessGroupGloo | None = None
    _pending: tuple[dist.Work, torch.Tensor] | None = None

    def connect(self) -> None:
        self._memory = HostMemory()
        rendezvous.gather(self.store, self.num_receivers + 1, self.deadline_s)
        self._group = _group(self.store, 0, self.num_receivers + 1, self.deadline_s, self._offer["host"])

    def _leave(self) -> None:
        held = [self._pending, self._group]
        self._pending = self._group = None
        # A group is freed only when its last broadcast has ended: if nobody receives it, at the deadline.
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
    """Rank 1 and above."""

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
    # The interface is named by address: gloo's own choice resolves the host name, which often is the loopback.
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
