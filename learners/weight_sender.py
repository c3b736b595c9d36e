"""The learner's side of a weight update: all ranks gather the weights, and rank 0 sends them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from learners.weights_source import WeightsSource
from rlsys.errors import SyncError


class WeightSender:
    """A rank's part in weight updates. Only rank 0 has a connection."""

    def __init__(self, weights: WeightsSource, *, rank: int) -> None:
        self._weights = weights
        self._is_first = rank == 0
        self._sender: Any = None
        self._connected = False

    def manifest(self, bucket_bytes: int) -> dict[str, Any]:
        """The manifest of an update, as `rlsys.transports` describes it."""
        from rlsys.transports.buckets import make_manifest

        return make_manifest(self._weights.manifest(), bucket_bytes)

    def open(self, transport: Any, num_receivers: int) -> dict[str, Any]:
        """Open a sender for receivers, on rank 0 only.

        Returns:
            The offer with which the receivers find this sender.
        """
        self.close()
        self._sender, self._connected = transport.sender(num_receivers), False
        return self._sender.offer()

    def close(self) -> None:
        """Close the connection to the receivers; only rank 0 has one."""
        if self._sender is not None:
            self._sender.close()
            self._sender = None

    def send(self, manifest: dict[str, Any]) -> dict[str, Any] | None:
        """Send the current weights, after all receivers have joined.

        Returns:
            The sender's report on rank 0: `names`, `num_tensors`, `num_bytes`, `digest`, `seconds`.

        Raises:
            SyncError: a receiver is lost or late. The ranks have still done the same gathers and are in step.
        """
        if not self._is_first:
            for _ in self._weights.stream(keep=False):
                pass
            return None
        failure = None if self._connected else _failure(self._sender.connect)
        self._connected = failure is None
        sizes = iter([len(bucket["names"]) for bucket in manifest["buckets"]])
        waiting: list[Any] = []
        size = next(sizes, 0)
        for named in self._weights.stream(keep=True):
            waiting.append(named)
            if len(waiting) == size:
                # The other ranks go on gathering, so this rank must as well. A failure is raised at the end.
                failure = failure or _failure(self._sender.send_bucket, waiting)
                waiting, size = [], next(sizes, 0)
        if failure is not None:
            raise failure
        return self._sender.finish()


def _failure(action: Callable[..., None], *arguments: Any) -> SyncError | None:
    try:
        action(*arguments)
    except SyncError as error:
        return error
    return None
