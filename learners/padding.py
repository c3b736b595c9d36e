"""Tokens behind a row that make its length one of few.

On a CPU a kernel is made for every shape of matrices in bfloat16, which takes a millisecond or two each, and memory that
stays: where every row is as long as its answers happen to be, a third of a step's time. The tokens have no effect: no
other token looks at them, and no loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

MULTIPLE = 64
"""Of which lengths then are: some tens of shapes, and a hundredth more tokens in a row of thousands."""


@dataclass(frozen=True, kw_only=True)
class Padding:
    """Lengths of what is added."""

    answers: tuple[int, ...] = ()
    """To the last tree."""
    prompts: tuple[int, ...] = ()
    """Trees without answers, behind it."""

    @classmethod
    def of(cls, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]], multiple: int) -> Padding:
        """What makes the row, and its answers together, multiples. Nothing is longer than the longest that is there.

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
    """Of which rows are to be multiples; 1 where shapes cost nothing."""
    return MULTIPLE if device.type == "cpu" and dtype == torch.bfloat16 else 1


def _pieces(total: int, largest: int) -> tuple[int, ...]:
    whole, rest = divmod(total, largest)
    return (largest,) * whole + ((rest,) if rest else ())
