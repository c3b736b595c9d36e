"""The plug-in inside vLLM's worker processes: a weight-transfer engine that contains the receivers of all transports.

If this package is installed, vLLM finds the plug-in through the entry point `vllm.general_plugins`. `actors.engines.vllm` also
imports it, and passes the name of `WorkerExtension` to vLLM, which imports it in every worker. Therefore a source tree on
`sys.path` is enough. Importing this module imports vLLM and registers the plug-in.
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
    """The address of the weight sender."""

    offer: dict[str, Any]
    """The sender's offer, with the receiver number of the first worker of this engine."""


@dataclass
class Update(WeightTransferUpdateInfo):
    """The description of an update."""

    manifest: dict[str, Any]
    """The manifest of all buckets of an update (`rlsys.transports.buckets`)."""


class BucketTransfer(WeightTransferEngine):
    """Loads packed buckets from any of our transports. The tensors have the names of the checkpoint."""

    init_info_cls = Offer
    update_info_cls = Update

    _receiver: Receiver | None = None
    _open = False
    """Whether an update has begun and is not finished. Parameters may then have no values."""
    _names: frozenset[str] = frozenset()
    """Names of the parameters that an update must load. A tied parameter is counted once; the list is made before the update
    begins, because tied parameters are separate while they are reloaded."""
    _loading: InPlace | Layerwise | None = None
    """The way of loading, which is chosen at the first update."""

    def init_transfer_engine(self, init_info: Offer) -> None:
        """Join the weight sender."""
        self.shutdown()
        number = init_info.offer["receiver"] + self.parallel_config.rank
        self._receiver = open_receiver({**init_info.offer, "receiver": number}, self.device)

    def start_weight_update(self) -> None:
        """Prepare the layers of the model for new weights."""
        self._finalize()  # otherwise the layers that a failed update has half loaded would count as loaded
        self._names = frozenset(name for name, _ in self.model.named_parameters())
        if self._loading is None:
            ranks = self.parallel_config.tensor_parallel_size
            self._loading = way_of_loading(self.model, self.model_config, ranks=ranks)
        self._loading.begin()
        self._open = True

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive and load all buckets."""
        # The parent's method synchronizes an accelerator, which raises an error if there is none.
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Update) -> None:
        """Receive and load all buckets. `last_report` then describes the received tensors, and lists the parameters that were
        not loaded."""
        if self._receiver is None:
            raise RuntimeError("weights are sent to an engine that has not joined a sender")
        loaded: set[str] = set()
        for bucket in self._receiver.receive(update_info.manifest, keep=self._loading.keeps):
            loaded |= self.model.load_weights(iter(bucket)) or set()
        self.last_report = {**self._receiver.report(), "not_loaded": sorted(self._names - loaded)}

    def finish_weight_update(self) -> None:
        """Put the received weights in place."""
        self._finalize()

    def shutdown(self) -> None:
        """Leave the weight sender."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

    def trainer_send_weights(self, *_: Any, **__: Any) -> Iterator[Any]:
        """Not supported. The method exists because it is abstract in some versions of vLLM."""
        raise NotImplementedError("weights are sent by rlsys.transports")

    def _finalize(self) -> None:
        if self._open:
            self._loading.end()
            self._open = False


class WorkerExtension:
    """Methods that vLLM mixes into its worker (`worker_extension_cls`)."""

    def rlsys_report(self) -> dict[str, Any]:
        """The report of the last weight update in this worker."""
        return self.weight_transfer_engine.last_report


def register() -> None:
    """Register the backend with vLLM in this process. The function may be called more than once."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, BucketTransfer)


register()
