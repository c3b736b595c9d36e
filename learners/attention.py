"""Attention of trees: a prompt once, and answers that see the prompt and themselves but not each other.

The tokens of a micro-batch lie in one row without padding, so that every linear layer works on real tokens only.
Attention alone is done on padded blocks: each prompt with itself, and each answer with its prompt and itself.
Letters: N tokens in the row, R trees, P longest prompt, A answers, C longest answer, H heads, K key/value heads, D
head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "rlsys_tree"
"""Name under which transformers knows this attention."""


@dataclass(frozen=True, kw_only=True)
class TreeLayout:
    """Where the tokens of a row stand in the padded blocks (prompts first, then answers)."""

    num_trees: int
    max_prompt: int
    max_answer: int
    tree_of_answer: torch.Tensor
    """int64 [A]."""
    row_of_slot: torch.Tensor
    """int64 [R * P + A * C], the token of each slot; 0 in padding."""
    slot_of_row: torch.Tensor
    """int64 [N]."""
    padding: torch.Tensor
    """int64, slots that hold no token."""
    answer_mask: torch.Tensor
    """bool [A or 1, 1, C, P + C], `True` where an answer's token may look."""

    @classmethod
    def build(cls, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]]) -> TreeLayout:
        """
        Args:
            prompt_lengths: tokens of each tree's prompt.
            answer_lengths: tokens of each answer of each tree; the row holds, tree by tree, prompt then answers.
        """
        trees = [tree for tree, answers in enumerate(answer_lengths) for _ in answers]
        flat = [length for answers in answer_lengths for length in answers]
        longest_prompt, longest_answer = max(prompt_lengths), max(flat)
        offset = len(prompt_lengths) * longest_prompt
        slots = np.empty(sum(prompt_lengths) + sum(flat), dtype=np.int64)
        start = answer = 0
        for tree, length in enumerate(prompt_lengths):
            slots[start : start + length] = tree * longest_prompt + np.arange(length)
            start += length
            for size in answer_lengths[tree]:
                slots[start : start + size] = offset + answer * longest_answer + np.arange(size)
                start += size
                answer += 1
        rows = np.zeros(offset + len(flat) * longest_answer, dtype=np.int64)
        rows[slots] = np.arange(len(slots))
        used = np.zeros(len(rows), dtype=bool)
        used[slots] = True
        return cls(
            num_trees=len(prompt_lengths),
            max_prompt=longest_prompt,
            max_answer=longest_answer,
            tree_of_answer=torch.tensor(trees, dtype=torch.int64),
            row_of_slot=torch.from_numpy(rows),
            slot_of_row=torch.from_numpy(slots),
            padding=torch.from_numpy(np.flatnonzero(~used)),
            answer_mask=_answer_mask([prompt_lengths[tree] for tree in trees], longest_prompt, longest_answer),
        )

    def to(self, device: torch.device) -> TreeLayout:
        """The same layout on a device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return TreeLayout(num_trees=self.num_trees, max_prompt=self.max_prompt, max_answer=self.max_answer, **moved)


def _answer_mask(prompt_lengths: list[int], longest_prompt: int, longest_answer: int) -> torch.Tensor:
    lengths = prompt_lengths[:1] if len(set(prompt_lengths)) == 1 else prompt_lengths
    in_prompt = torch.arange(longest_prompt) < torch.tensor(lengths)[:, None]
    causal = torch.ones(longest_answer, longest_answer, dtype=torch.bool).tril()
    mask = torch.cat(
        [
            in_prompt[:, None, :].expand(-1, longest_answer, -1),
            causal[None].expand(len(lengths), -1, -1),
        ],
        dim=2,
    )
    return mask[:, None]


class _Spread(torch.autograd.Function):
    """Row [N, X] to slots. Slots of padding hold some token's values: nothing looks at them, so they get no
    gradient.
    """

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, layout: TreeLayout) -> torch.Tensor:
        ctx.layout = layout
        return row.index_select(0, layout.row_of_slot)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.index_select(0, ctx.layout.slot_of_row), None


class _Gather(torch.autograd.Function):
    """Slots to row [N, X]."""

    @staticmethod
    def forward(ctx: Any, slots: torch.Tensor, layout: TreeLayout) -> torch.Tensor:
        ctx.layout = layout
        return slots.index_select(0, layout.slot_of_row)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        spread = grad.index_select(0, ctx.layout.row_of_slot)
        return spread.index_fill_(0, ctx.layout.padding, 0), None


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    tree_layout: TreeLayout,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """An attention function in the interface of transformers.

    Args:
        query: [1, H, N, D]; key and value: [1, K, N, D].
        attention_mask: unused, the layout says who sees whom.

    Returns:
        [1, N, H, D], and no weights.
    """
    layout = tree_layout
    trees, longest_prompt, longest_answer = layout.num_trees, layout.max_prompt, layout.max_answer
    cut = trees * longest_prompt

    def blocks(row: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        heads, size = row.shape[1], row.shape[3]
        slots = _Spread.apply(row[0].transpose(0, 1).reshape(row.shape[2], heads * size), layout)
        prompts = slots[:cut].view(trees, longest_prompt, heads, size)
        return prompts, slots[cut:].view(-1, longest_answer, heads, size)

    (query_prompt, query_answer), (key_prompt, key_answer), (value_prompt, value_answer) = map(
        blocks, (query, key, value)
    )
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": key.shape[1] != query.shape[1]}
    prompts = _attend(query_prompt, key_prompt, value_prompt, is_causal=True, **options)
    keys = torch.cat([key_prompt.index_select(0, layout.tree_of_answer), key_answer], dim=1)
    values = torch.cat([value_prompt.index_select(0, layout.tree_of_answer), value_answer], dim=1)
    answers = _attend(query_answer, keys, values, attn_mask=layout.answer_mask, **options)
    slots = torch.cat([prompts.reshape(cut, -1), answers.reshape(len(query_answer) * longest_answer, -1)])
    return _Gather.apply(slots, layout).view(1, query.shape[2], query.shape[1], -1), None


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    """Scaled dot products of [batch, tokens, heads, D] blocks."""
    output = scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), **options)
    return output.transpose(1, 2)


def register() -> None:
    """Make the attention known to transformers as `NAME`; asking twice is harmless."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
