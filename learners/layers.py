"""Forward methods for layers of transformers, with the same results and fewer passes over memory.

Text layers work on one row of tokens without a batch dimension and without padding. After the last layer only the positions
that predict a response's token are needed, so the last layer computes its queries and its perceptron for those alone.
Letters in shapes: N tokens of the row, L response tokens, S patches, H heads, D head size.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import nn

from learners.attention import TreeLayout, attend, attend_from_predictors
from learners.dot_products import dot_products

_FAMILIES = ("Qwen2_5_VL", "Qwen2VL", "Qwen2", "Qwen3", "Llama")
_TEXT_ATTENTION = {f"{family}Attention" for family in _FAMILIES}
_DECODER_LAYERS = {f"{family}DecoderLayer" for family in _FAMILIES}
_VISION_ATTENTION = {"Qwen2_5_VLVisionAttention", "VisionAttention"}


class _Rotate(torch.autograd.Function):
    """Rotary embedding (arXiv:2104.09864); the two halves of a head are the two coordinates of its pairs."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = states.shape[-1] // 2
        turned = states * cos
        turned[..., :half].addcmul_(states[..., half:], sin[..., :half], value=-1)
        turned[..., half:].addcmul_(states[..., :half], sin[..., half:])
        return turned

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = grad.shape[-1] // 2
        back = grad * cos
        back[..., :half].addcmul_(grad[..., half:], sin[..., half:])
        back[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
        return back, None, None


def rotate(states_NHD: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor) -> torch.Tensor:
    """Rotate queries or keys by their positions; the positions get no gradient."""
    return _Rotate.apply(states_NHD, cos_N1D, sin_N1D)


def put_in(text: nn.Module) -> bool:
    """Replace the forward methods of a text model's layers by those of this file, where the layer's class is known.

    Returns:
        Whether the last layer now returns the L predicting positions instead of all N.
    """
    for layer in text.layers:
        if type(layer.self_attn).__name__ in _TEXT_ATTENTION:
            layer.self_attn.forward = MethodType(_attention, layer.self_attn)
    last = text.layers[-1]
    is_known = type(last).__name__ in _DECODER_LAYERS and type(last.self_attn).__name__ in _TEXT_ATTENTION
    if is_known:
        last.forward = MethodType(_last_layer, last)
    return is_known


def put_in_vision(visual: nn.Module) -> None:
    """Replace the forward methods of a vision tower's attention modules likewise."""
    for module in visual.modules():
        if type(module).__name__ in _VISION_ATTENTION:
            module.forward = MethodType(_vision_attention, module)


def _attention(
    self: Any,
    hidden_states: torch.Tensor,
    *,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    tree_layout: TreeLayout,
    asking: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Forward method of a text layer's attention.

    Args:
        hidden_states: [1, N, X].
        asking: int64 [L], the positions whose output is wanted; `None` for all N.
    """
    (row,), ((cos,), (sin,)) = hidden_states, position_embeddings
    cos, sin = cos[:, None], sin[:, None]

    def heads(projected: torch.Tensor, norm: str) -> torch.Tensor:
        states = projected.view(len(projected), -1, self.head_dim)
        return getattr(self, norm)(states) if hasattr(self, norm) else states

    key = rotate(heads(self.k_proj(row), "k_norm"), cos, sin)
    value = self.v_proj(row).view(len(row), -1, self.head_dim)
    if asking is not None:
        row, cos, sin = row.index_select(0, asking), cos.index_select(0, asking), sin.index_select(0, asking)
    query = rotate(heads(self.q_proj(row), "q_norm"), cos, sin)
    dropout = self.attention_dropout if self.training else 0.0
    function = attend if asking is None else attend_from_predictors
    output = function(query, key, value, tree_layout, scale=self.scaling, dropout_p=dropout)
    return self.o_proj(output.flatten(1))[None], None


def _last_layer(self: Any, hidden_states: torch.Tensor, *, predict: torch.Tensor, **rest: Any) -> torch.Tensor:
    """Forward method of the last text layer.

    Args:
        predict: int64 [L], the positions that predict a response's token.

    Returns:
        [1, L, X].
    """
    attended, _ = self.self_attn(self.input_layernorm(hidden_states), asking=predict, **rest)
    hidden = hidden_states.index_select(1, predict) + attended
    return hidden + self.mlp(self.post_attention_layernorm(hidden))


def _vision_attention(
    self: Any,
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    position_embeddings: tuple[torch.Tensor, torch.Tensor],
    **_: Any,
) -> torch.Tensor:
    """Forward method of vision attention: all segments of the same length are computed in one call.

    Args:
        hidden_states: [S, X].
        cu_seqlens: int32, the first patch of each segment; S at the end.
    """
    cos, sin = (values[:, None].float() for values in position_embeddings)
    states = self.qkv(hidden_states).view(len(hidden_states), 3, self.num_heads, -1)
    query, key, value = states.unbind(1)
    query, key = (rotate(each.float(), cos, sin).to(value.dtype) for each in (query, key))
    starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
    kinds = lengths.unique()
    if len(kinds) == 1:
        return self.proj(_of_segments(query, key, value, int(kinds), self.scaling))
    places, outputs = [], []
    for length in kinds.tolist():
        rows = (starts[lengths == length, None] + torch.arange(length, device=starts.device)).flatten()
        picked = (each.index_select(0, rows) for each in (query, key, value))
        places.append(rows)
        outputs.append(_of_segments(*picked, length, self.scaling))
    order = torch.cat(places).argsort()
    return self.proj(torch.cat(outputs).index_select(0, order))


def _of_segments(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, length: int, scaling: float
) -> torch.Tensor:
    """Attention within segments of `length` rows each: [S, H, D] to [S, H * D]."""
    blocks = (each.reshape(-1, length, *each.shape[1:]).transpose(1, 2) for each in (query, key, value))
    return dot_products(*blocks, scale=scaling).transpose(1, 2).reshape(len(query), -1)
