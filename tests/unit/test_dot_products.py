"""Attention within blocks, in both ways, against the formula."""

import math

import pytest
import torch

from learners import dot_products as module
from learners.dot_products import LARGEST_HELD, dot_products


def by_formula(query, key, value, *, seen, scale):
    """In float64, one head at a time."""
    each = query.shape[1] // key.shape[1]
    heads = []
    for head in range(query.shape[1]):
        scores = query[:, head].double() @ key[:, head // each].double().transpose(1, 2) * scale
        heads.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value[:, head // each].double())
    return torch.stack(heads, 1)


@pytest.fixture(params=["held", "in tiles"])
def either_way(request, monkeypatch):
    if request.param == "in tiles":
        monkeypatch.setattr(module, "LARGEST_HELD", 0)


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("shown", ["all", "causal", "mask of each block", "mask of all blocks"])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_outputs_and_gradients_are_those_of_the_formula(key_heads, shown, scale):
    torch.manual_seed(0)
    num_keys = 5 if shown == "causal" else 9
    query, key, value = rows = [
        torch.randn(3, tokens, heads, 8).transpose(1, 2).requires_grad_()
        for tokens, heads in ((5, 4), (num_keys, key_heads), (num_keys, key_heads))
    ]
    weight = torch.randn(3, 4, 5, 8)
    seen, options = torch.ones(3, 5, num_keys, dtype=torch.bool), {}
    if shown == "causal":
        seen, options = seen.tril(), {"is_causal": True}
    elif shown != "all":
        mask = torch.rand(3 if "each" in shown else 1, 1, 5, 9) < 0.5
        mask[..., 0] = True
        seen, options = mask[:, 0].expand(3, -1, -1), {"attn_mask": mask}
    found = dot_products(query, key, value, scale=scale, **options)
    expected = by_formula(query, key, value, seen=seen, scale=scale or 1 / math.sqrt(8)).float()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad((output * weight).sum(), rows) for output in (found, expected)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("either_way")
def test_what_is_masked_gets_no_gradient_and_changes_nothing():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 3, 8) for _ in range(3))
    mask = torch.tensor([True, False, True]).expand(1, 1, 3, 3)
    other = value.clone()
    other[:, :, 1] = 1e30
    assert torch.equal(dot_products(query, key, value, attn_mask=mask), dot_products(query, key, other, attn_mask=mask))
    key.requires_grad_()
    (gradient,) = torch.autograd.grad(dot_products(query, key, value, attn_mask=mask).sum(), [key])
    assert gradient[:, :, 1].abs().max() == 0
    assert gradient[:, :, 0].abs().max() > 0


@pytest.mark.usefixtures("either_way")
def test_in_bfloat16_it_is_that_of_float32_rounded():
    torch.manual_seed(0)
    rows = [torch.randn(2, heads, 5, 8).bfloat16() for heads in (4, 2, 2)]
    found = dot_products(*rows, is_causal=True)
    expected = dot_products(*(row.float() for row in rows), is_causal=True)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize(("num_keys", "dropout", "in_tiles"), [(4, 0.0, False), (5, 0.0, True), (4, 0.5, True)])
def test_scores_are_held_of_small_blocks_alone_and_where_none_is_dropped(num_keys, dropout, in_tiles, monkeypatch):
    went = []
    monkeypatch.setattr(module, "_in_tiles", lambda query, *_, **options: went.append(options["dropout_p"]) or query)
    key = torch.randn(1, 1, num_keys, 8)
    dot_products(torch.randn(1, 1, LARGEST_HELD // 4, 8), key, key, dropout_p=dropout)
    assert went == ([dropout] if in_tiles else [])
