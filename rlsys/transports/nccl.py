"""Weight transport from GPU to GPU: one NCCL broadcast per bucket.

The communicator is vLLM's own binding of NCCL, which vLLM's weight transfer also uses. It can load another NCCL library
(`VLLM_NCCL_SO_PATH`), and it does not touch torch's process groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from rlsys import registry
from rlsys.common.lazy import dist, torch
from rlsys.errors import SyncError, SyncTimeout
from rlsys.transports import base, rendezvous
from rlsys.transports.buckets import Named, pack


@registry.transport("nccl")
@dataclass(kw_only=True)
class Nccl:
    """A broadcast by NCCL between GPUs of one or several machines. In the learner, only rank 0 takes part."""

    bucket_bytes: int = 512 << 20
    """Size of a bucket in bytes. Sender and receivers each hold two buckets on the GPU."""
    deadline_s: float = 300.0
    """Time limit of the rendezvous, and of each bucket."""
    host: str | None = None
    """Address under which the engines reach the learner's machine; taken from the routing table if `null`."""

    between_gpus: ClassVar[bool] = True
    on_shared_gpu: ClassVar[bool] = False

    def __post_init__(self) -> None:
        base.check_options(self)

    def sender(self, num_receivers: int) -> NcclSender:
        """The sender in the learner, for `num_receivers` receivers."""
        return NcclSender(name="nccl", num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host)

    @staticmethod
    def receiver(offer: dict[str, Any], device: torch.device) -> NcclReceiver:
        """The receiver in an engine."""
        return NcclReceiver(offer, device)


class NcclSender(base.Sender):
    """The sender: rank 0 of the group, on the current CUDA device."""

    metrics = base.DeviceTransferMetrics

    _channel: _Channel | None = None
    _pending: tuple[torch.cuda.Event, torch.Tensor] | None = None

    def connect(self) -> None:
        device = torch.device("cuda", torch.cuda.current_device())
        self._channel = _Channel(self.store, 0, self.num_receivers + 1, self.deadline_s, device)

    def _leave(self) -> None:
        self._pending = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _pack(self, tensors: Sequence[Named]) -> torch.Tensor:
        return pack(tensors, self._channel.device)

    def _post(self, flat: torch.Tensor) -> None:
        self._pending = (self._channel.broadcast(flat), flat)

    def _settle(self) -> None:
        if self._pending is not None:
            self._channel.wait(*self._pending)
            self._pending = None


class NcclReceiver(base.Receiver):
    """A receiver: rank 1 and above of the group."""

    metrics = base.DeviceTransferMetrics

    def __init__(self, offer: dict[str, Any], device: torch.device) -> None:
        super().__init__(offer, device)
        self._channel: _Channel | None = _Channel(self.store, self.rank, self.world_size, self.deadline_s, device)

    def _leave(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _post(self, num_bytes: int) -> tuple[torch.cuda.Event, torch.Tensor]:
        flat = torch.empty(num_bytes, dtype=torch.uint8, device=self.device)
        return self._channel.broadcast(flat), flat

    def _settle(self, pending: tuple[torch.cuda.Event, torch.Tensor]) -> torch.Tensor:
        self._channel.wait(*pending)
        return pending[1]


class _Channel:
    """A communicator with a CUDA stream of its own and a deadline, which NCCL itself does not offer."""

    def __init__(self, store: dist.TCPStore, rank: int, size: int, deadline_s: float, device: torch.device) -> None:
        from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator

        self.device = device
        self._deadline_s = deadline_s
        rendezvous.gather(store, size, deadline_s)
        self._communicator = PyNcclCommunicator(_rendezvous(store, rank, size), device=device)
        if self._communicator.disabled:
            raise SyncError("NCCL is not there: its library could not be loaded, or VLLM_DISABLE_PYNCCL is set")
        self._stream = torch.cuda.Stream(device)

    def broadcast(self, flat: torch.Tensor) -> torch.cuda.Event:
        """Begin to send or receive `flat`, and return the event that marks the end of the broadcast."""
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        flat.record_stream(self._stream)
        try:
            self._communicator.broadcast(flat, src=0, stream=self._stream)
        except RuntimeError as error:
            raise rendezvous.failure(error, f"NCCL broadcast of {flat.numel()} bytes", self._deadline_s) from error
        done = torch.cuda.Event()
        done.record(self._stream)
        return done

    def wait(self, done: torch.cuda.Event, flat: torch.Tensor) -> None:
        """Wait until a broadcast has ended.

        Args:
            done: the event that `broadcast` returned.
            flat: the buffer, whose size is shown in the error message.

        Raises:
            SyncTimeout: the broadcast did not end before the deadline. The communicator is then destroyed, because nothing else
                stops NCCL.
        """
        try:
            rendezvous.wait_until(
                done.query, self._deadline_s, lambda: f"NCCL broadcast of {flat.numel()} bytes did not end"
            )
        except SyncTimeout:
            self.close()
            raise
        torch.cuda.current_stream(self.device).wait_event(done)

    def close(self) -> None:
        """Abort the communicator, also in the middle of a broadcast whose peer is lost."""
        self._communicator.destroy()


def _rendezvous(store: dist.TCPStore, rank: int, size: int) -> Any:
    """The process group that vLLM's communicator needs, implemented on our own store and without pickle."""
    from vllm.distributed.utils import StatelessProcessGroup

    class Rendezvous(StatelessProcessGroup):
        def __init__(self) -> None:  # the other fields of the parent are for operations that are not used here
            self.rank, self.world_size, self.store = rank, size, store

        def broadcast_obj(self, obj: Any, src: int) -> Any:
            """Send NCCL's unique id, a plain C structure, from rank `src` to all ranks."""
            if rank == src:
                store.set("nccl_id", bytes(obj))
                return obj
            return type(obj).from_buffer_copy(store.get("nccl_id"))

    return Rendezvous()
