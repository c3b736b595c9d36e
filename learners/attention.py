"""Attention of trees: a prompt stands in the row once, and each response sees the prompt and itself but no other response.

The tokens of a micro-batch lie in one row without padding, so that every linear layer works on real tokens only. Attention
alone is computed on padded blocks: each prompt attends to itself, and each response attends to its prompt and itself. Where
FlashAttention is available it takes the row as it is, and no blocks are made (`flash.py`).
Letters in shapes: N tokens in the row, L of them in responses, R trees, P longest prompt, A responses, C longest response,
S slots of the blocks, H heads, K key/value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch

from learners import flash
from learners.dot_products import dot_products
from rlsys.errors import ConfigError

NAME = "rlsys_tree"
"""Name under which transformers knows this attention."""
OTHER_ATTENTION = ("sliding_window", "softcap", "s_aux", "position_bias")
"""Arguments of transformers for attention variants that this function does not implement."""
PIECE = 192
"""Least number of a response's tokens whose attention is one call; with fewer tokens torch uses smaller blocks of its own."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """The mapping between the tokens of a row and the slots of padded blocks, in both directions."""

    slot_of_token: torch.Tensor
    """int64 [N], the slot of each token."""
    token_of_slot: torch.Tensor
    """int64 [S], the token in each slot; 0 in slots of padding."""
    padding: torch.Tensor
    """int64, the slots that hold no token."""

    @classmethod
    def build(cls, slot_of_token: np.ndarray, num_slots: int) -> Slots:
        """The mapping that puts token i into slot `slot_of_token[i]`; the slots must all be different."""
        tokens = np.zeros(num_slots, dtype=np.int64)
        tokens[slot_of_token] = np.arange(len(slot_of_token))
        used = np.zeros(num_slots, dtype=bool)
        used[slot_of_token] = True
        return cls(
            slot_of_token=torch.from_numpy(slot_of_token),
            token_of_slot=torch.from_numpy(tokens),
            padding=torch.from_numpy(np.flatnonzero(~used)),
        )

    def to(self, device: torch.device) -> Slots:
        """The same mapping on a device."""
        return Slots(**{name: value.to(device) for name, value in vars(self).items()})

    def spread(self, row_NX: torch.Tensor) -> torch.Tensor:
        """Copy the rows of tokens [N, X] into slots [S, X]."""
        return _Spread.apply(row_NX, self)

    def gather(self, slots_SX: torch.Tensor) -> torch.Tensor:
        """Copy the rows of slots [S, X] back to tokens [N, X]."""
        return _Gather.apply(slots_SX, self)


@dataclass(frozen=True, kw_only=True)
class TreeLayout:
    """The slot of each of a row's tokens in the padded blocks (prompts first, then responses), and the tokens that it sees."""

    prompt_lengths: tuple[int, ...]
    """Number of tokens of each tree's prompt."""
    answer_lengths: tuple[tuple[int, ...], ...]
    """Number of tokens of each response of each tree. The row holds, tree by tree, the prompt and then the responses."""
    tree_of_answer: torch.Tensor
    """int64 [A], the tree of each response."""
    slots: Slots
    """The places of the row's N tokens in R * P + A * C slots."""
    target_slots: Slots
    """The places of the L tokens of all responses in A * C slots."""

    @classmethod
    def build(cls, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]]) -> TreeLayout:
        """The layout of a row with these lengths; the arguments are the fields of the same names."""
        trees = [tree for tree, answers in enumerate(answer_lengths) for _ in answers]
        flat = [length for answers in answer_lengths for length in answers]
        longest_prompt, longest_answer = max(prompt_lengths), max(flat)
        offset = len(prompt_lengths) * longest_prompt
        row: list[np.ndarray] = []
        targets: list[np.ndarray] = []
        for tree, length in enumerate(prompt_lengths):
            row.append(tree * longest_prompt + np.arange(length))
            for size in answer_lengths[tree]:
                targets.append(len(targets) * longest_answer + np.arange(size))
                row.append(offset + targets[-1])
        return cls(
            prompt_lengths=tuple(prompt_lengths),
            answer_lengths=tuple(map(tuple, answer_lengths)),
            tree_of_answer=torch.tensor(trees, dtype=torch.int64),
            slots=Slots.build(np.concatenate(row), offset + len(flat) * longest_answer),
            target_slots=Slots.build(np.concatenate(targets), len(flat) * longest_answer),
        )

    def to(self, device: torch.device) -> TreeLayout:
        """The same layout on a device."""
        movable = {name: getattr(self, name) for name in ("tree_of_answer", "slots", "target_slots")}
        return replace(self, **{name: value.to(device) for name, value in movable.items()})

    @property
    def max_prompt(self) -> int:
        """P, the length of the longest prompt."""
        return max(self.prompt_lengths)

    @property
    def max_answer(self) -> int:
        """C, the length of the longest response."""
        return max(max(answers, default=0) for answers in self.answer_lengths)

    @cached_property
    def answer_mask(self) -> torch.Tensor:
        """bool [A or 1, 1, C, P + C], `True` where a response's token may attend."""
        return self._mask(newest=0)

    @cached_property
    def predictor_mask(self) -> torch.Tensor:
        """The same mask for the tokens that predict a response's tokens.

        These are the last token of the prompt and all tokens of the response but its last.
        """
        return self._mask(newest=-1)

    @cached_property
    def sequences(self) -> flash.Sequences:
        """FlashAttention's sequences in which all tokens of the row are queries."""
        return flash.Sequences.build(self.prompt_lengths, self.answer_lengths).to(self.tree_of_answer.device)

    @cached_property
    def predictor_sequences(self) -> flash.Sequences:
        """FlashAttention's sequences in which only the tokens that predict a response's tokens are queries."""
        found = flash.Sequences.build(self.prompt_lengths, self.answer_lengths, predictors=True)
        return found.to(self.tree_of_answer.device)

    def _mask(self, *, newest: int) -> torch.Tensor:
        """The mask of queries that see their whole prompt, and their response up to their own position plus `newest`."""
        trees = zip(self.prompt_lengths, self.answer_lengths, strict=True)
        lengths = [length for length, answers in trees for _ in answers]
        if len(set(lengths)) == 1:
            lengths = lengths[:1]
        in_prompt = torch.arange(self.max_prompt) < torch.tensor(lengths)[:, None]
        causal = torch.ones(self.max_answer, self.max_answer, dtype=torch.bool).tril(newest)
        mask = torch.cat(
            [
                in_prompt[:, None, :].expand(-1, self.max_answer, -1),
                causal[None].expand(len(lengths), -1, -1),
            ],
            dim=2,
        )
        return mask[:, None].to(self.tree_of_answer.device)


class _Spread(torch.autograd.Function):
    """Copies tokens to slots. A slot of padding holds the values of token 0; no query attends to it, so it gets no gradient."""

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, slots: Slots) -> torch.Tensor:
        ctx.slots = slots
        return row.index_select(0, slots.token_of_slot)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad.index_select(0, ctx.slots.slot_of_token), None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, slots: Slots) -> torch.Tensor:
        ctx.slots = slots
        return values.index_select(0, slots.slot_of_token)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        spread = grad.index_select(0, ctx.slots.token_of_slot)
        return spread.index_fill_(0, ctx.slots.padding, 0), None


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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The attention of trees as a function with the interface that transformers expects.

    Args:
        query: [1, H, N, D]; key and value: [1, K, N, D].
        attention_mask: unused, because the layout determines which tokens see which.

    Returns:
        The output [1, N, H, D], and `None` in place of attention weights.

    Raises:
        ConfigError: the model's attention is not a plain softmax over all earlier tokens.
    """
    for name in OTHER_ATTENTION:
        if others.get(name) is not None:
            raise ConfigError(f"{type(module).__name__} has {name}: take learner.path=plain")
    rows = (row[0].transpose(0, 1) for row in (query, key, value))
    return attend(*rows, tree_layout, scale=scaling, dropout_p=dropout)[None], None


def attend(
    query_NHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, layout: TreeLayout, **options: Any
) -> torch.Tensor:
    """Attention of all tokens of the row, [N, H, D]."""
    if flash.fits(query_NHD):
        return flash.attend(query_NHD, key_NKD, value_NKD, layout.sequences, **options)
    cut = len(layout.prompt_lengths) * layout.max_prompt
    query, key, value = (_blocks(row, layout) for row in (query_NHD, key_NKD, value_NKD))
    prompts = _of_blocks(query[0], key[0], value[0], is_causal=True, **options)
    answers = _of_answers(query[1], _seen(key, layout), _seen(value, layout), layout.answer_mask, **options)
    slots = torch.cat([prompts.reshape(cut, -1), answers.reshape(len(layout.slots.token_of_slot) - cut, -1)])
    return layout.slots.gather(slots).view(query_NHD.shape)


def attend_from_predictors(
    query_LHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, layout: TreeLayout, **options: Any
) -> torch.Tensor:
    """Attention of only the tokens that predict the responses' tokens, [L, H, D]."""
    if flash.fits(query_LHD):
        return flash.attend(query_LHD, key_NKD, value_NKD, layout.predictor_sequences, **options)
    num_tokens, heads, size = query_LHD.shape
    query = layout.target_slots.spread(query_LHD.reshape(num_tokens, -1)).view(-1, layout.max_answer, heads, size)
    key, value = (_seen(_blocks(row, layout), layout) for row in (key_NKD, value_NKD))
    output = _of_answers(query, key, value, layout.predictor_mask, **options)
    return layout.target_slots.gather(output.reshape(-1, heads * size)).view(query_LHD.shape)


def _blocks(row: torch.Tensor, layout: TreeLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn a row [N, heads, D] into the blocks of prompts [R, P, heads, D] and of responses [A, C, heads, D]."""
    num_tokens, heads, size = row.shape
    slots = layout.slots.spread(row.reshape(num_tokens, -1))
    prompts, answers = slots.tensor_split([len(layout.prompt_lengths) * layout.max_prompt])
    return prompts.view(-1, layout.max_prompt, heads, size), answers.view(-1, layout.max_answer, heads, size)


def _seen(blocks: tuple[torch.Tensor, torch.Tensor], layout: TreeLayout) -> torch.Tensor:
    """The tokens that each response may see, [A, P + C, heads, D]: those of its prompt, then its own."""
    prompts, answers = blocks
    return torch.cat([prompts.index_select(0, layout.tree_of_answer), answers], dim=1)


def _of_answers(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, **options: Any
) -> torch.Tensor:
    """Attention of responses [A, C, H, D] to the tokens that they may see, [A, P + C, K, D].

    The queries of a long response are cut into pieces. The keys that the last token of a piece does not see are left out for
    the whole piece instead of being only masked.
    """
    length, seen = query.shape[1], key.shape[1]
    if length < 2 * PIECE:
        return _of_blocks(query, key, value, attn_mask=mask, **options)
    pieces, end = [], 0
    for queries in query.tensor_split(length // PIECE, dim=1):
        start, end = end, end + queries.shape[1]
        last = seen - length + end
        shown = mask[:, :, start:end, :last]
        pieces.append(_of_blocks(queries, key[:, :last], value[:, :last], attn_mask=shown, **options))
    return torch.cat(pieces, dim=1)


def _of_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any) -> torch.Tensor:
    """Scaled dot-product attention of blocks [batch, tokens, heads, D]."""
    output = dot_products(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), **options)
    return output.transpose(1, 2)


def register() -> None:
    """Register the attention with transformers under `NAME`; a second call has no effect."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, tree_attention)
