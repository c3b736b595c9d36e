"""The policy's current weights as a stream of checkpoint tensors, whatever the ranks have partitioned or adapted."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from learners.deepspeed_backend import Engine
from learners.names import CheckpointNames, Source

GATHER_BYTES = 256 << 20
"""Weights gathered at a time under ZeRO-3."""


class WeightsSource:
    """Iterates (checkpoint name, tensor) in the order of `manifest()`; LoRA is merged, tied weights stand once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = CheckpointNames(engine.module.model)

    def manifest(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor, without gathering any."""
        return self._names.manifest()

    @torch.no_grad()
    def stream(self, *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """All ranks iterate to the end, in step. A tensor is valid until the next is asked for.

        Args:
            keep: whether this rank wants the tensors (rank 0); others only help to gather, and get nothing.
        """
        for group in _groups(self._names.sources):
            parts = [part for source in group for part in source.parts]
            with self._engine.gathered(parts):
                if keep:
                    for source in group:
                        yield self._names.rename(source, source.value())


def _groups(sources: list[Source]) -> Iterator[list[Source]]:
    group: list[Source] = []
    size = 0
    for source in sources:
        num_bytes = source.shape.numel() * source.tensor.element_size()
        if group and size + num_bytes > GATHER_BYTES:
            yield group
            group, size = [], 0
        group.append(source)
        size += num_bytes
    if group:
        yield group
