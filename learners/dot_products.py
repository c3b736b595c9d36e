"""Attention within blocks: scaled dot products, computed in whichever way is faster for the blocks' size.

torch's `scaled_dot_product_attention` goes over a block in tiles so that it never holds all scores. For blocks that are
hardly larger than a tile, two batched matrix products around a softmax are faster on a CPU: with two threads they take half
to two thirds of the time.
Letters in shapes: Z blocks, H heads, K key/value heads, T queries, S keys, D head size.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

LARGEST_HELD = 8192
"""Largest number of queries times keys of a block whose scores are all held at once on a CPU.

Measured: holding all scores is faster for blocks of 64 x 94 and slower for blocks of 128 x 158.
"""


def dot_products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    dropout_p: float = 0.0,
) -> torch.Tensor:
    """Scaled dot-product attention with the result of torch's own function.

    On a CPU it is computed in float32: there torch's backward pass is several times slower in bfloat16, and the matrices are
    small.

    Args:
        query: [Z, H, T, D]; key and value: [Z, K, S, D].
        attn_mask: bool [Z or 1, 1, T, S], `True` where a query may attend; every query must have at least one such key.
        is_causal: whether query i sees only the keys up to i; it excludes a mask.

    Returns:
        [Z, H, T, D] in the queries' dtype.
    """
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    if query.device.type != "cpu":
        return _in_tiles(query, key, value, dropout_p=dropout_p, **options)
    rows = (query.float(), key.float(), value.float())
    if dropout_p or query.shape[2] * key.shape[2] > LARGEST_HELD:
        return _in_tiles(*rows, dropout_p=dropout_p, **options).to(query.dtype)
    return _held(*rows, **options).to(query.dtype)


def _in_tiles(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: object) -> torch.Tensor:
    return scaled_dot_product_attention(query, key, value, enable_gqa=key.shape[1] != query.shape[1], **options)


def _held(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    attn_mask: torch.Tensor | None,
    is_causal: bool,
    scale: float | None,
) -> torch.Tensor:
    """Attention that holds all scores at once. The queries of all heads that share keys are rows of one matrix product."""
    num_blocks, num_shared, num_keys, size = key.shape
    num_queries = query.shape[2]
    scaled = query * (size**-0.5 if scale is None else scale)
    query_rows, key_rows, value_rows = (
        each.reshape(num_blocks * num_shared, -1, size) for each in (scaled, key, value)
    )
    scores = torch.bmm(query_rows, key_rows.transpose(1, 2)).view(num_blocks, -1, num_queries, num_keys)
    if is_causal:
        attn_mask = query.new_ones((num_queries, num_keys), dtype=torch.bool).tril_()
    if attn_mask is not None:
        scores = scores + scores.new_zeros(attn_mask.shape).masked_fill_(~attn_mask, -torch.inf)
    weights = scores.softmax(-1).view(len(query_rows), -1, num_keys)
    return torch.bmm(weights, value_rows).view(query.shape)
