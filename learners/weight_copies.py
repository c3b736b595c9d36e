"""Copies of the trained weights that a rank keeps, and a context in which the policy computes with one of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from learners.deepspeed_backend import Engine

Weights = dict[str, torch.Tensor]
"""The part of every trained parameter that one rank holds. Frozen parameters are the same in every copy and are left out."""


def take(engine: Engine, *, dtype: torch.dtype | None = None) -> Weights:
    """A copy of the current weights."""
    return {name: value.to(dtype or value.dtype, copy=True) for name, value in engine.local_weights().items()}


@contextmanager
def using(engine: Engine, weights: Weights) -> Iterator[None]:
    """Context in which the module computes with `weights`, and afterwards with its own again. All ranks must enter it
    together."""
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
