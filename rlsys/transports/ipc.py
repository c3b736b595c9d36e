"""Weight transport between processes that share a GPU: an engine loads the weights from the learner's memory on the device.

The learner exports two buffers once, by CUDA IPC. While the engines load a bucket from one buffer, the learner writes the next
bucket into the other. The rendezvous store carries the handles and, for every bucket, the announcement that it is available
(as in every transport) and the count of receivers that have used it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgpack

from rlsys import registry
from rlsys.common.lazy import torch
from rlsys.errors import SyncError
from rlsys.transports import base, rendezvous
from rlsys.transports.buckets import Named, pack_into

NUM_BUFFERS = 2


@registry.transport("ipc")
@dataclass(kw_only=True)
class Ipc:
    """A copy on the device, for rank 0 of the learner and engines on the same GPU."""

    bucket_bytes: int = 1 << 30
    """Size of a bucket in bytes. The learner holds two buffers of this size, and no tensor may be larger."""
    deadline_s: float = 120.0
    """Time limit of the rendezvous, and of each bucket."""
    host: str | None = None
    """Address under which the engines reach the learner's machine; taken from the routing table if `null`."""

    between_gpus: ClassVar[bool] = True
    on_shared_gpu: ClassVar[bool] = True

    def __post_init__(self) -> None:
        base.check_options(self)

    def sender(self, num_receivers: int) -> IpcSender:
        """The sender in the learner, for `num_receivers` receivers."""
        return IpcSender(self.bucket_bytes, num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host)

    @staticmethod
    def receiver(offer: dict[str, Any], device: torch.device) -> IpcReceiver:
        """The receiver in an engine."""
        return IpcReceiver(offer, device)


class IpcSender(base.Sender):
    """The sender, which owns the buffers on the current CUDA device."""

    metrics = base.DeviceTransferMetrics

    def __init__(self, bucket_bytes: int, **options: Any) -> None:
        super().__init__(name="ipc", **options)
        self._bucket_bytes = bucket_bytes
        self._buffers: tuple[torch.Tensor, ...] = ()

    def connect(self) -> None:
        device = torch.device("cuda", torch.cuda.current_device())
        self._buffers = _buffers(self._bucket_bytes, device)
        self.store.set("gpu", _gpu(device))
        for receiver in range(self.num_receivers):
            # Every receiver gets an export of its own, because torch counts one release per export.
            self.store.set(f"handles/{receiver}", msgpack.packb([_export(buffer) for buffer in self._buffers]))
        rendezvous.gather(self.store, self.num_receivers + 1, self.deadline_s)

    def _leave(self) -> None:
        self._buffers = ()

    def _pack(self, tensors: Sequence[Named]) -> torch.Tensor:
        self._await_use(self._posted - NUM_BUFFERS + 1)  # the receivers must have used the buffer's previous bucket
        flat = pack_into(self._buffers[self._posted % NUM_BUFFERS], tensors)
        torch.cuda.current_stream(flat.device).synchronize()  # no stream orders this write and the other process's read
        return flat

    def _post(self, flat: torch.Tensor) -> None:
        pass  # the announcement is all that a receiver needs

    def _settle(self) -> None:
        pass  # the receivers may still read the previous bucket, from the other buffer

    def finish(self) -> dict[str, Any]:
        """As `Sender.finish`; waits until every receiver has used the last bucket."""
        if self._failure is None:
            self._await_use(self._posted)
        return super().finish()

    def _await_use(self, count: int) -> None:
        """Wait until every receiver has used the first `count` buckets.

        Raises:
            SyncTimeout: the receivers have not used them before the deadline.
        """
        if count <= 0:
            return
        key = f"used/{count - 1}"
        rendezvous.wait_until(
            lambda: self.store.add(key, 0) >= self.num_receivers,
            self.deadline_s,
            lambda: f"{self.store.add(key, 0)} of {self.num_receivers} engines used bucket {count - 1}",
        )


class IpcReceiver(base.Receiver):
    """A receiver, which reads the sender's buffers."""

    metrics = base.DeviceTransferMetrics

    def __init__(self, offer: dict[str, Any], device: torch.device) -> None:
        super().__init__(offer, device)
        try:
            gpu = self.store.get("gpu").decode()
            handles = msgpack.unpackb(self.store.get(f"handles/{offer['receiver']}"))
        except RuntimeError as error:
            raise rendezvous.failure(error, "waiting for the learner's buffers", self.deadline_s) from error
        if gpu != _gpu(device):
            raise SyncError(
                f"transport ipc needs one GPU for learner and engine, but they are on {gpu} and {_gpu(device)}"
            )
        self._buffers = [_import(handle, device) for handle in handles]
        rendezvous.gather(self.store, self.world_size, self.deadline_s)

    def _leave(self) -> None:
        self._buffers = []

    def _post(self, num_bytes: int) -> tuple[int, int]:
        return self._posted, num_bytes

    def _settle(self, pending: tuple[int, int]) -> torch.Tensor:
        number, num_bytes = pending
        flat = self._buffers[number % NUM_BUFFERS][:num_bytes]
        self._current = number
        return flat.clone() if self._keep else flat

    def _used(self) -> None:
        torch.cuda.current_stream(self.device).synchronize()  # all reads end before the learner may write again
        self.store.add(f"used/{self._current}", 1)


@functools.cache
def _buffers(num_bytes: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """The buffers of a sender. They are made once per process and exported anew for every connection, because torch frees
    exported memory only when all receivers have released it, and a receiver that was killed never does.
    """
    return tuple(torch.empty(num_bytes, dtype=torch.uint8, device=device) for _ in range(NUM_BUFFERS))


def _gpu(device: torch.device) -> str:
    return str(torch.cuda.get_device_properties(device).uuid)


def _export(buffer: torch.Tensor) -> list[Any]:
    """Plain values from which `_import` maps the buffer into another process."""
    from torch.multiprocessing.reductions import reduce_tensor

    _, arguments = reduce_tensor(buffer)
    handle, size_bytes, offset_bytes = arguments[7:10]
    return [buffer.numel(), arguments[3], handle, size_bytes, offset_bytes, *arguments[11:15]]


def _import(values: list[Any], device: torch.device) -> torch.Tensor:
    from torch.multiprocessing.reductions import rebuild_cuda_tensor

    numel, tensor_offset, handle, size_bytes, offset_bytes, *events = values
    storage = (torch.storage.TypedStorage, torch.uint8, device.index, handle, size_bytes, offset_bytes)
    return rebuild_cuda_tensor(torch.Tensor, (numel,), (1,), tensor_offset, *storage, False, *events)
