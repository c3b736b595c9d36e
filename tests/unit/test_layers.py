"""Layers of our own against the formulas and the layers they stand in for."""

import pytest
import torch

from learners import attention
from learners.allocator import keep_freed_memory
from learners.attention import TreeLayout, attend, attend_from_predictors
from learners.kernels import RMSNorm
from learners.layers import put_in_vision, rotate
from tests.unit.varlen import predictors


def test_a_quarter_turn_exchanges_the_halves():
    states = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    turned = rotate(states, torch.zeros(1, 1, 4), torch.ones(1, 1, 4))
    assert turned.tolist() == [[[-3.0, -4.0, 1.0, 2.0]]]


def test_rotation_has_the_gradient_of_its_formula():
    torch.manual_seed(0)
    states = torch.randn(5, 3, 8, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(2, 5, 1, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(rotate, (states, cos, sin))


@pytest.mark.parametrize(("prompts", "answers"), [([3], [[2, 4]]), ([1, 6, 4], [[1], [3, 3], [2, 7, 1]])])
@pytest.mark.parametrize("piece", [attention.PIECE, 2])
def test_predictors_attend_as_they_do_among_all_tokens(prompts, answers, piece, monkeypatch):
    monkeypatch.setattr(attention, "PIECE", piece)
    torch.manual_seed(0)
    count = sum(prompts) + sum(map(sum, answers))
    rows = [torch.randn(count, heads, 8, requires_grad=True) for heads in (4, 2, 2)]
    layout, places = TreeLayout.build(prompts, answers), predictors(prompts, answers)
    weight = torch.randn(len(places), 4, 8)
    results = []
    for output in (attend(*rows, layout)[places], attend_from_predictors(rows[0][places], *rows[1:], layout)):
        results.append([output, *torch.autograd.grad((output * weight).sum(), rows)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("bounds", [[0, 4, 8, 12], [0, 2, 12], [0, 5, 7, 12]])
def test_segments_of_a_picture_attend_as_one_after_another(bounds):
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

    torch.manual_seed(0)
    config = Qwen2_5_VLVisionConfig(hidden_size=16, num_heads=2)
    config._attn_implementation = "sdpa"
    layer = Qwen2_5_VLVisionAttention(config)
    hidden = torch.randn(12, 16, requires_grad=True)
    inputs = {
        "cu_seqlens": torch.tensor(bounds, dtype=torch.int32),
        "position_embeddings": tuple(torch.randn(2, 12, 8)),
    }
    results = []
    for change in (lambda _: None, put_in_vision):
        change(layer)
        output = layer(hidden, **inputs)
        results.append([output, *torch.autograd.grad(output.square().sum(), [hidden, *layer.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)])
def test_normalization_is_that_of_transformers_and_so_is_its_gradient(dtype, tolerance):
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    torch.manual_seed(0)
    stock = Qwen2RMSNorm(32).to(dtype)
    stock.weight.data.normal_()
    hidden = torch.randn(2, 9, 32).to(dtype).requires_grad_()
    ahead = torch.randn(2, 9, 32).to(dtype)
    results = []
    for layer in (stock, RMSNorm(stock)):
        output = layer(hidden)
        results.append([output, *torch.autograd.grad(output, [hidden, stock.weight], ahead)])
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype == dtype
        torch.testing.assert_close(one, other, atol=tolerance, rtol=tolerance)


def test_weights_in_float32_beside_states_in_bfloat16_are_normalized_with_as_they_are_there():
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    stock = Qwen2RMSNorm(4)
    hidden = torch.tensor([[1.0, 2.0, -3.0, 4.0]], dtype=torch.bfloat16, requires_grad=True)
    output = RMSNorm(stock)(hidden)
    assert output.dtype == stock(hidden).dtype == torch.float32
    output.sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert stock.weight.grad.dtype == torch.float32


def test_the_allocator_takes_its_settings():
    assert keep_freed_memory()


def test_what_a_piece_does_not_see_is_left_out(monkeypatch):
    looked_at = []
    monkeypatch.setattr(attention, "PIECE", 3)
    monkeypatch.setattr(attention, "dot_products", lambda q, k, v, **_: looked_at.append((q.shape[2], k.shape[2])) or q)
    attend(*torch.randn(3, 5 + 8, 1, 4), TreeLayout.build([5], [[8]]))
    assert looked_at == [(5, 5), (4, 9), (4, 13)]
