"""Forms a batch of examples for each step, and each rank's shard of the batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from learners.examples.kinds import kind_of
from rlsys import wire

SHARD_LIMITS = wire.Limits(max_bytes=1 << 36)
"""Limits of the frame of a shard. They are larger than those of other frames, because 128 photographs would exceed these."""


def batches_of(examples: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Batches in the order of arrival. The last batch may be smaller; no example is dropped."""
    batch: list[Any] = []
    for example in examples:
        batch.append(example)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def shards(batch: Sequence[Any], num_ranks: int) -> list[list[Any]]:
    """Divide a batch into one shard per rank, of similar cost.

    Examples of one prompt stay together, so that the prompt is computed once. Examples of a prompt that cost more than an even
    share are divided. The result is deterministic. Some shards are empty if there are too few examples.
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
    """Examples that go to the same rank."""

    examples: list[Any] = field(default_factory=list)
    cost: float = 0.0
