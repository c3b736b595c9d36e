"""Logprobs of chosen tokens, computed without holding the logits of a whole batch.

Full-vocabulary logits exist for one piece of the positions at a time, in the forward pass and again in the backward pass.
Letters in shapes: N positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

_MIB = 1 << 20
CHUNK_MIB = {False: 64, True: 512}
"""Memory for one piece of logits, MiB, by whether the device is a GPU.

On a GPU pieces are larger, because every piece reads the head's whole weight and writes its whole gradient, however few
positions it has.
"""


class _ChunkedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: torch.Tensor,
        weight_VD: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        chunk: int,
        value_id: int | None,
    ) -> tuple[torch.Tensor, ...]:
        logps, target_logits, normalizers, values = [], [], [], []
        for start in range(0, len(hidden_ND), chunk):
            rows = slice(start, start + chunk)
            logits = linear(hidden_ND[rows], weight_VD, bias_V).float()
            chosen = logits.gather(1, targets_N[rows, None])[:, 0]
            normalizer = logits.logsumexp(1)
            logps.append(chosen - normalizer)
            target_logits.append(chosen)
            normalizers.append(normalizer)
            if value_id is not None:
                values.append(logits[:, value_id].clone())
        ctx.chunk, ctx.value_id = chunk, value_id
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N, torch.cat(normalizers))
        return (torch.cat(logps), torch.cat(target_logits), *([torch.cat(values)] if values else []))

    @staticmethod
    def backward(
        ctx: Any, grad_logps_N: torch.Tensor, grad_logits_N: torch.Tensor, *grad_values: torch.Tensor
    ) -> tuple:
        hidden_ND, weight_VD, bias_V, targets_N, normalizers_N = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        grad_bias = torch.zeros_like(bias_V, dtype=torch.float32) if wants_bias else None
        for start in range(0, len(hidden_ND), ctx.chunk):
            rows = slice(start, start + ctx.chunk)
            logits = linear(hidden_ND[rows], weight_VD, bias_V).float()
            grad = logits.sub_(normalizers_N[rows, None]).exp_().mul_(-grad_logps_N[rows, None])
            grad.scatter_add_(1, targets_N[rows, None], (grad_logps_N[rows] + grad_logits_N[rows])[:, None])
            if grad_values:
                grad[:, ctx.value_id] += grad_values[0][rows]
            if wants_bias:
                grad_bias += grad.sum(0)
            grad = grad.to(weight_VD.dtype)
            if wants_hidden:
                grad_hidden[rows] = grad @ weight_VD
            if wants_weight:
                grad_weight += grad.t() @ hidden_ND[rows]
        return (
            grad_hidden,
            grad_weight.to(weight_VD.dtype) if wants_weight else None,
            grad_bias.to(bias_V.dtype) if wants_bias else None,
            None,
            None,
            None,
        )


def chunk_rows(num_vocabulary: int, chunk_mib: int) -> int:
    """Number of positions whose float32 logits fit into `chunk_mib`, at least 1."""
    return max(1, chunk_mib * _MIB // (4 * num_vocabulary))


def token_logprobs(
    hidden_ND: torch.Tensor,
    weight_VD: torch.Tensor,
    targets_N: torch.Tensor,
    *,
    bias_V: torch.Tensor | None = None,
    chunk: int,
    value_id: int | None = None,
) -> tuple[torch.Tensor, ...]:
    """The logprob and the raw logit of one token per position, and optionally the raw logit of a fixed token at all positions.

    Args:
        hidden_ND: last hidden states of the positions that predict.
        targets_N: int64, the token of each position.
        chunk: positions per piece.
        value_id: the fixed token whose raw logit is returned at every position; `None` for none.

    Returns:
        float32 [N] logprobs (nats), float32 [N] raw logits and, with `value_id`, float32 [N] raw logits of the fixed token. All
        are differentiable.
    """
    if len(hidden_ND) != len(targets_N):
        raise ValueError(f"{len(hidden_ND)} hidden states for {len(targets_N)} targets")
    return _ChunkedLogprobs.apply(hidden_ND, weight_VD, bias_V, targets_N, chunk, value_id)


class LogprobHead(nn.Linear):
    """A language model head that, given targets, returns their logprobs instead of logits.

    It is a module so that ZeRO-3 gathers its weight for the duration of the call, in the forward and in the backward pass.
    """

    chunk_mib: int = 0
    value_id: int | None = None
    """The token whose raw logit is returned as well, at every position; `None` for none."""

    @classmethod
    def take_over(cls, head: nn.Linear, chunk_mib: int) -> LogprobHead:
        """A head that uses the parameter objects of `head`, so that tied parameters stay tied."""
        new = cls.__new__(cls)
        nn.Module.__init__(new)
        new.in_features, new.out_features = head.in_features, head.out_features
        new.weight, new.bias = head.weight, head.bias
        new.chunk_mib = chunk_mib
        return new

    def forward(self, hidden: torch.Tensor, targets_N: torch.Tensor | None = None) -> torch.Tensor:
        """Compute logits [..., V] without targets, and float32 [2, N] with targets.

        With targets, row 0 has their logprobs and row 1 their raw logits. A third row has the raw logits of `value_id`, if it
        is set. The rows are one tensor for a reason: ZeRO-3 follows the modules' order in the backward pass by their outputs,
        so ranks whose losses use different ones of several outputs would wait for each other forever.
        """
        if targets_N is None:
            return super().forward(hidden)
        chunk = chunk_rows(self.out_features, self.chunk_mib or CHUNK_MIB[hidden.is_cuda])
        found = token_logprobs(hidden, self.weight, targets_N, bias_V=self.bias, chunk=chunk, value_id=self.value_id)
        return torch.stack(found)
