"""Padding at the end of a row, which makes its length one of a few.

For matrices in bfloat16 the CPU library makes a kernel for every shape. Each kernel takes a millisecond or two, and memory that
is not freed. If the length of every row is whatever its responses happen to add up to, this takes a third of a step's time.
Padding has no effect on results: no other token attends to it, and it carries no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MULTIPLE = 64
"""Padded lengths are multiples of this. It leaves some tens of shapes, and adds 1 % of tokens to a row of thousands."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Lengths of the sequences of padding that are added to a row."""

    answers: tuple[int, ...] = ()
    """Lengths of responses that are added to the last tree."""
    prompts: tuple[int, ...] = ()
    """Lengths of prompts that are added behind the last tree, as trees without responses."""

    @classmethod
    def of(cls, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]], multiple: int) -> Padding:
        """The padding that makes the length of the row, and the total length of its responses, multiples of `multiple`.

        No sequence of padding is longer than the longest of its kind in the row.

        >>> Padding.of([7, 5], [[2, 3], [3]], 8)
        Padding(answers=(), prompts=(4,))
        """
        answers = [length for tree in answer_lengths for length in tree]
        more = -sum(answers) % multiple
        return cls(
            answers=_pieces(more, max(answers)),
            prompts=_pieces(-(sum(prompt_lengths) + sum(answers) + more) % multiple, max(prompt_lengths)),
        )


def multiple_for(device: torch.device, dtype: torch.dtype) -> int:
    """The number that lengths of rows must be multiples of; 1 where new shapes cost nothing."""
    return MULTIPLE if device.type == "cpu" and dtype == torch.bfloat16 else 1


def _pieces(total: int, largest: int) -> tuple[int, ...]:
    whole, rest = divmod(total, largest)
    return (largest,) * whole + ((rest,) if rest else ())
