"""A batch of examples for each step, and each rank's share of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from learners.examples.kinds import kind_of
from rlsys import wire

SHARD_LIMITS = wire.Limits(max_bytes=1 << 36)
"""A share is one frame, and 128 photographs are more than a frame from elsewhere may be."""


def batches_of(examples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Batches in order of arrival; the last may be smaller, none is dropped."""
    batch: list[Any] = []
    for example in examples:
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def shards(batch: Sequence[Any], num_ranks: int) -> list[list[Any]]:
    """One share per rank, of like cost; examples of one prompt stay together, so that it is computed once.

    A prompt with more than an even share of the cost is cut. Deterministic; empty shares if there are too few examples.
    """
    if num_ranks == 1:
        return [list(batch)]
    kind = kind_of(type(batch[0]))
    limit = sum(map(kind.cost, batch)) / num_ranks
    blocks: list[_Block] = []
    open_blocks: dict[str, _Block] = {}
    for example in batch:
        group, cost = kind.group(example), kind.cost(example)
        block = open_blocks.get(group)
        if block is None or block.cost + cost > limit:
            block = open_blocks[group] = _Block()
            blocks.append(block)
        block.examples.append(example)
        block.cost += cost
    result: list[list[Any]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for block in sorted(blocks, key=lambda block: -block.cost):
        lightest = loads.index(min(loads))
        result[lightest] += block.examples
        loads[lightest] += block.cost
    return result


@dataclass
class _Block:
    """Examples that stay together."""

    examples: list[Any] = field(default_factory=list)
    cost: float = 0.0
