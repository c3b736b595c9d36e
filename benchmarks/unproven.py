"""Ways to send weights that prove nothing, to measure what the digest costs and what buckets save. For
`benchmarks.weight_sync` only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from rlsys import registry
from rlsys.transports.base import Tally
from rlsys.transports.buckets import Bucket, Named, describe, flat_bytes, unpack
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

    name: ClassVar[str] = "gloo_unproven"
    ends: ClassVar[tuple[type[GlooSender], type[GlooReceiver]]] = UnprovenSender, UnprovenReceiver

    def sender(self, num_receivers: int) -> GlooSender:
        """The learner's end for so many receivers."""
        return self.ends[0](name=self.name, num_receivers=num_receivers, deadline_s=self.deadline_s, host=self.host)

    @classmethod
    def receiver(cls, offer: dict[str, Any], device: torch.device) -> GlooReceiver:
        """An engine's end."""
        return cls.ends[1](offer, device)


class PerTensorSender(UnprovenSender):
    """The learner's end: a broadcast for every tensor, and nothing said beside it."""

    def _send(self, tensors: Sequence[Named]) -> None:
        flat = self._pack(tensors)
        self._settle()
        self._post(flat)
        self._tally.add(flat, describe(tensors))


class PerTensorReceiver(UnprovenReceiver):
    """An engine's end."""

    def receive(self, manifest: dict[str, list[Bucket]], *, keep: bool = True) -> Iterator[list[Named]]:
        """A tensor after the other; the manifest has a bucket for each."""
        self._tally = self.tally()
        for bucket in manifest["buckets"]:
            flat = self._settle(self._post(flat_bytes(bucket)))
            self._tally.add(flat, bucket)
            yield unpack(flat, bucket)


@registry.transport("gloo_per_tensor")
@dataclass(kw_only=True)
class PerTensorGloo(UnprovenGloo):
    """What other systems do: one broadcast per tensor."""

    bucket_bytes: int = 1
    """A bucket holds at least one tensor."""
    name: ClassVar[str] = "gloo_per_tensor"
    ends: ClassVar[tuple[type[GlooSender], type[GlooReceiver]]] = PerTensorSender, PerTensorReceiver
