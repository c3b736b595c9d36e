"""Attention of trees on a GPU: FlashAttention once for a whole row, without padding and without a mask.

Every prompt and every answer is a sequence of queries, as it stands in the row. A prompt's keys are its own; an answer's are
its prompt's, then its own. FlashAttention 2 (arXiv:2307.08691) with causality lets the last query of a sequence see all its
keys, the one before it all but the last, and so on: an answer's first token sees its prompt and itself.

torch's `scaled_dot_product_attention` has one kernel for a mask together with shared key heads, cuDNN's, which plans every
shape anew; where it does not take that one, it holds all scores at once.
N tokens in the row, Q queries, B sequences, E keys of all of them, H heads, K key/value heads, D head size.
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
"""Of a GPU, for the kernels."""


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """Which keys the queries see."""

    query_starts: torch.Tensor
    """int32 [B + 1], where each sequence begins among the queries, and Q."""
    key_starts: torch.Tensor
    """int32 [B + 1], where its keys begin, and E."""
    key_tokens: torch.Tensor
    """int64 [E], the token of the row whose key it is."""
    most_queries: int
    """Of a sequence."""
    most_keys: int

    @classmethod
    def build(
        cls, prompt_lengths: Sequence[int], answer_lengths: Sequence[Sequence[int]], *, predictors: bool = False
    ) -> Sequences:
        """
        Args:
            prompt_lengths, answer_lengths: as in `attention.TreeLayout`.
            predictors: queries are the tokens that predict an answer's, answer by answer: the prompt's last, then the answer's
                but its last. Else they are all tokens of the row.
        """
        lengths: list[int] = []
        keys: list[np.ndarray] = []
        start, unseen = 0, int(predictors)  # nothing is predicted from an answer's last token
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
        """The same on a device."""
        return replace(
            self, **{k: value.to(device) for k, value in vars(self).items() if isinstance(value, torch.Tensor)}
        )


def _starts(lengths: Sequence[int]) -> torch.Tensor:
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32))


class _Select(torch.autograd.Function):
    """Rows of the tokens whose keys are seen. A prompt's get a gradient from every answer, added up in float32."""

    @staticmethod
    def forward(ctx: Any, row: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        ctx.tokens, ctx.shape = tokens, row.shape
        return row.index_select(0, tokens)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grad.device)
        return total.index_add_(0, ctx.tokens, grad.float()).to(grad.dtype), None


def fits(query: torch.Tensor) -> bool:
    """Whether these heads can be attended with in this way: on a GPU, in half precision, of a size that has a kernel."""
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
    """Attention of the queries, [Q, H, D]; options of `varlen`."""
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
    """The kernel: attention of all sequences at once, each causal towards its last key."""
    # The operation under torch.nn.attention.varlen, whose own arguments are others in every version.
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
