"""Gloo without the digest, to measure what the digest costs. For `benchmarks.weight_sync` only: it proves nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rlsys import registry
from rlsys.transports.ends import Tally
from rlsys.transports.gloo import Gloo, GlooReceiver, GlooSender


class Uncounted(Tally):
    """Counts tensors and looks into none of them."""

    def add_values(self, tensors: Any) -> None:
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
