"""Attention of trees on a GPU: one call of FlashAttention for a whole row, without padding and without a mask.

Every prompt and every response is one sequence of queries, as it stands in the row. The keys of a prompt are its own. The keys
of a response are those of its prompt, followed by its own. Causal FlashAttention 2 (arXiv:2307.08691) lets the last query of a
sequence see all keys of the sequence, the query before it all keys but the last, and so on. The first token of a response thus
sees its prompt and itself.

torch's `scaled_dot_product_attention` is no alternative. Its only kernel that takes a mask together with shared key heads is
that of cuDNN, which plans anew for every shape; where torch does not choose that kernel, it holds all scores at once.
Letters in shapes: N tokens in the row, Q queries, B sequences, E keys of all sequences, H heads, K key/value heads, D head
size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

LARGEST_HEAD = 256
HEAD_MULTIPLE = 8
LEAST_CAPABILITY = (8, 0)
"""The least compute capability of a GPU that has the kernels."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """The sequences of one attention call: their queries, and the keys that these see."""

    query_starts: torch.Tensor
    """int32 [B + 1], the first query of each sequence; Q at the end."""
    key_starts: torch.Tensor
    """int32 [B + 1], the first key of each sequence; E at the end."""
    key_tokens: torch.Tensor
    """int64 [E], the token of the row that each key comes from."""
    most_queries: int
    """Number of queries of the sequence that has most."""
    most_keys: int
    """Number of keys of the sequence that has most."""

    @classmethod
    def build(
        cls, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]], *, predictors: bool = False
    ) -> Sequences:
        """
        Args:
            prompt_lengths, answer_lengths: as in `attention.TreeLayout`.
            predictors: whether the queries are only the tokens that predict a response's tokens: for each response the last
                token of the prompt, then all tokens of the response but its last. Otherwise all tokens of the row are
                queries.
        """
        lengths: list[int] = []
        keys: list[np.ndarray] = []
        start, unseen = 0, int(predictors)  # nothing is predicted from a response's last token
        for length, answers in zip(prompt_lengths, answer_lengths, strict=True):
            prompt = np.arange(start, start + length)
            if not predictors:
                lengths.append(length)
                keys.append(prompt)
            start += length
            for size in answers:
                lengths.append(size)
                keys.append(np.concatenate([prompt, np.arange(start, start + size - unseen)]))
                start += size
        sizes = [len(each) for each in keys]
        return cls(
            query_starts=_starts(lengths),
            key_starts=_starts(sizes),
            key_tokens=torch.from_numpy(np.concatenate(keys)),
            most_queries=max(lengths),
            most_keys=max(sizes),
        )

    def to(self, device: torch.device) -> Sequences:
        """The same sequences on a device."""
        return replace(
            self, **{k: value.to(device) for k, value in vars(self).items() if isinstance(value, torch.Tensor)}
        )


def _starts(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))


class _Select(torch.autograd.Function):
    """Copies the rows of the tokens that are keys.

    A token of a prompt gets a gradient from every response to it; the gradients are added up in float32.
    """

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.tokens, ctx.shape = tokens, row.shape
        return row.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grad.device)
        return total.index_add_(0, ctx.tokens, grad.float()).to(grad.dtype), None


def fits(query: torch.Tensor) -> bool:
    """Whether FlashAttention can be used for these queries: on a GPU, in half precision, and of a head size with a kernel."""
    if not query.is_cuda or torch.version.hip or query.dtype not in (torch.bfloat16, torch.float16):
        return False
    size = query.shape[-1]
    return (
        size <= LARGEST_HEAD
        and size % HEAD_MULTIPLE == 0
        and torch.cuda.get_device_capability(query.device) >= LEAST_CAPABILITY
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
    )


def attend(
    query_QHD: torch.Tensor, key_NKD: torch.Tensor, value_NKD: torch.Tensor, sequences: Sequences, **options: Any
) -> torch.Tensor:
    """Attention of the queries, [Q, H, D]; `options` are those of `varlen`."""
    key, value = (_Select.apply(row, sequences.key_tokens) for row in (key_NKD, value_NKD))
    return varlen(query_QHD, key, value, sequences, **options)


def varlen(
    query_QHD: torch.Tensor,
    key_EKD: torch.Tensor,
    value_EKD: torch.Tensor,
    sequences: Sequences,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Call the kernel: attention of all sequences at once, with the causal mask aligned to the last key of each sequence."""
    # This operation lies under torch.nn.attention.varlen, whose own arguments change with every version of torch.
    output, *_ = torch.ops.aten._flash_attention_forward(
        query_QHD,
        key_EKD,
        value_EKD,
        sequences.query_starts,
        sequences.key_starts,
        sequences.most_queries,
        sequences.most_keys,
        dropout_p,
        True,  # causal
        False,  # no mask for debugging
        scale=scale,
    )
    return output
