"""The policy's current weights as a stream of checkpoint tensors, gathered from all ranks and with adapters merged."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from learners.deepspeed_backend import Engine
from learners.names import CheckpointNames, Source

GATHER_BYTES = 256 << 20
"""Largest size of the weights that are gathered at a time under ZeRO-3; a single weight may be larger."""


class WeightsSource:
    """Streams (checkpoint name, tensor) in the order of `manifest()`. LoRA is merged, and tied weights come once."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names = CheckpointNames(engine.module.model)

    def manifest(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        """Name, dtype and shape of every tensor, without gathering any."""
        return self._names.manifest()

    @torch.no_grad()
    def stream(self, *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """Stream all tensors. All ranks must iterate to the end, in step. A tensor is valid until the next one is requested.

        Args:
            keep: whether this rank wants the tensors (rank 0). The other ranks only take part in gathering and get nothing.
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
