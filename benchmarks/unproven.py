"""Ways to send weights that prove nothing, to measure what the digest costs and what buckets save. For
`benchmarks.weight_sync` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlsys import registry
from rlsys.transports.buckets import Bucket, Named, describe, flat_bytes, unpack
from rlsys.transports.ends import Tally
from rlsys.transports.gloo import Gloo, GlooReceiver, GlooSender


class Uncounted(Tally):
    """Counts tensors and looks into none of them."""

    def add_values(self, flat: torch.Tensor, bucket: Bucket) -> None:
        """Nothing."""


class UnprovenSender(GlooSender):
    """The learner's end."""

    tally = Uncounted


class UnprovenReceiver(GlooReceiver):
    """An engine's end."""

    tally = Uncounted


@registry.transport("gloo_unproven")
@dataclass(kw_only=True)
class UnprovenGloo(Gloo):
    """As `gloo`, but the digest is that of nothing on both ends."""

    def sender(self, num_receivers: int) -> UnprovenSender:
        """The learner's end for so many receivers."""
        return UnprovenSender(
            name="gloo_unproven", num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host
        )

    @staticmethod
    def receiver(offer: dict[str, Any], device: torch.device) -> UnprovenReceiver:
        """An engine's end."""
        return UnprovenReceiver(offer, device)


class PerTensorSender(UnprovenSender):
    """The learner's end: a broadcast for every tensor, and nothing said beside it."""

    def _send(self, tensors: Sequence[Named]) -> None:
        flat = self._pack(tensors)
        self._settle()
        self._post(flat)
        self._tally.add(flat, describe(tensors))


class PerTensorReceiver(UnprovenReceiver):
    """An engine's end."""

    def receive(self, manifest: dict[str, list[Bucket]]) -> Iterator[list[Named]]:
        """A tensor after the other; the manifest has a bucket for each."""
        self._tally = self.tally()
        for bucket in manifest["buckets"]:
            flat = self._settle(self._post(flat_bytes(bucket)))
            self._tally.add(flat, bucket)
            yield unpack(flat, bucket)


@registry.transport("gloo_per_tensor")
@dataclass(kw_only=True)
class PerTensorGloo(Gloo):
    """What other systems do: one broadcast per tensor."""

    bucket_bytes: int = 1
    """A bucket holds at least one tensor."""

    def sender(self, num_receivers: int) -> PerTensorSender:
        """The learner's end for so many receivers."""
        return PerTensorSender(
            name="gloo_per_tensor", num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host
        )

    @staticmethod
    def receiver(offer: dict[str, Any], device: torch.device) -> PerTensorReceiver:
        """An engine's end."""
        return PerTensorReceiver(offer, device)
