"""What runs inside vLLM's worker processes: the receiving end of every transport, as one weight-transfer engine.

vLLM finds it through the entry point `vllm.general_plugins` where this package is installed. `actors.engines.vllm`
imports it too, and names `WorkerExtension` to vLLM, which imports it in every worker: so a source tree on `sys.path` is
enough. Importing this module imports vLLM, and registers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from actors.vllm_loading import InPlace, Layerwise, way_of_loading
from rlsys.transports.base import Receiver, open_receiver

BACKEND = "rlsys"
"""Name of the weight-transfer backend."""


@dataclass
class Offer(WeightTransferInitInfo):
    """Where the sender is."""

    offer: dict[str, Any]
    """With the receiver's number for the first worker of this engine."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """What will come."""

    manifest: dict[str, Any]
    """All buckets of an update (`rlsys.transports.buckets`)."""


class BucketTransfer(WeightTransferEngine):
    """Loads packed buckets, in the names of the checkpoint, from any of our transports."""

    init_info_cls = Offer
    update_info_cls = Update

    _receiver: Receiver | None = None
    _open = False
    """An update has begun and not been finalized: parameters may be without values."""
    _names: frozenset[str] = frozenset()
    """Of the parameters that an update must reach: tied ones once, which stand apart while they are reloaded."""
    _loading: InPlace | Layerwise | None = None
    """Chosen at the first update."""

    def init_transfer_engine(self, init_info: Offer) -> None:
        """Join the sender."""
        self.shutdown()
        number = init_info.offer["receiver"] + self.parallel_config.rank
        self._receiver = open_receiver({**init_info.offer, "receiver": number}, self.device)

    def start_weight_update(self) -> None:
        """Make the model's layers ready to be loaded again."""
        self._finalize()  # what a failed update left half done would count as loaded
        self._names = frozenset(name for name, _ in self.model.named_parameters())
        if self._loading is None:
            ranks = self.parallel_config.tensor_parallel_size
            self._loading = way_of_loading(self.model, self.model_config, ranks=ranks)
        self._loading.begin()
        self._open = True

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load all buckets."""
        # Not the parent's: it synchronizes an accelerator, which raises where there is none.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Update) -> None:
        """Receive and load; `last_report` is then what came, and which parameters it did not reach."""
        if self._receiver is None:
            raise RuntimeError("weights are sent to an engine that has not joined a sender")
        loaded: set[str] = set()
        for bucket in self._receiver.receive(update_info.manifest, keep=self._loading.keeps):
            loaded |= self.model.load_weights(iter(bucket)) or set()
        self.last_report = {**self._receiver.report(), "not_loaded": sorted(self._names - loaded)}

    def finish_weight_update(self) -> None:
        """Put what came in place."""
        self._finalize()

    def shutdown(self) -> None:
        """Leave the sender."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

    def trainer_send_weights(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Abstract in some versions of vLLM."""
        raise NotImplementedError("weights are sent by rlsys.transports")

    def _finalize(self) -> None:
        if self._open:
            self._loading.end()
            self._open = False


class WorkerExtension:
    """Methods that vLLM mixes into its worker (`worker_extension_cls`)."""

    def rlsys_report(self) -> dict[str, Any]:
        """What the last weight update delivered to this worker."""
        return self.weight_transfer_engine.last_report


def register() -> None:
    """Make the backend known to vLLM in this process; may be called more than once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, BucketTransfer)


register()
