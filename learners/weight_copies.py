"""Copies of the trained weights that a rank keeps, and the policy computing with one of them for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from learners.deepspeed_backend import Engine

Weights = dict[str, torch.Tensor]
"""What one rank holds of every trained parameter; frozen parameters are the same in every copy and are not kept."""


def take(engine: Engine, *, dtype: torch.dtype | None = None) -> Weights:
    """A copy of the current weights."""
    return {name: value.to(dtype or value.dtype, copy=True) for name, value in engine.local_weights().items()}


@contextmanager
def using(engine: Engine, weights: Weights) -> Iterator[None]:
    """The module computes with `weights` inside, and with its own again afterwards. All ranks enter together."""
    own = engine.exchange(weights)
    try:
        yield
    finally:
        engine.exchange(own)


@torch.no_grad()
def move_average(average: Weights, engine: Engine, decay: float) -> None:
    """average <- decay * average + (1 - decay) * current, in place, in the average's own precision."""
    for name, value in engine.local_weights().items():
        average[name].lerp_(value.to(average[name].dtype), 1 - decay)
