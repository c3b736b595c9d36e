"""A batch of examples for each step, and each rank's share of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rlsys import wire
from rlsys.records import CritiquePair, Demonstration, PreferencePair

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
    """One share per rank, of like cost; pairs of one prompt stay together, so that it is computed once.

    A prompt with more than an even share of the cost is cut. Deterministic; empty shares if there are too few examples.
    """
    if num_ranks == 1:
        return [list(batch)]
    limit = sum(map(_cost, batch)) / num_ranks
    blocks: list[list[Any]] = []
    open_blocks: dict[str, list[Any]] = {}
    for example in batch:
        key = _prompt_id(example)
        block = open_blocks.get(key)
        if block is None or sum(map(_cost, block)) + _cost(example) > limit:
            block = open_blocks[key] = []
            blocks.append(block)
        block.append(example)
    result: list[list[Any]] = [[] for _ in range(num_ranks)]
    loads = [0.0] * num_ranks
    for block in sorted(blocks, key=lambda block: -sum(map(_cost, block))):
        lightest = loads.index(min(loads))
        result[lightest] += block
        loads[lightest] += sum(map(_cost, block))
    return result


def _prompt_id(example: Any) -> str:
    return example.chosen_prompt.id if isinstance(example, CritiquePair) else example.prompt.id


def _cost(example: Any) -> float:
    """Tokens where they are known, else characters: all examples of a batch are of one class."""
    if isinstance(example, PreferencePair):
        answers = len(example.chosen.token_ids) + len(example.rejected.token_ids)
        return len(example.prompt_token_ids) + answers
    if isinstance(example, Demonstration):
        return 1.0 + len(example.response)
    return 2.0 + len(example.chosen_critique) + len(example.rejected_critique)
