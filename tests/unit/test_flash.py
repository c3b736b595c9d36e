"""A row of trees as sequences of queries and keys, against the attention on padded blocks."""

import pytest
import torch

from learners import flash
from learners.attention import TreeLayout, attend, attend_from_predictors
from tests.unit.varlen import one_after_another, predictors

TREES = [([3], [[2, 4]]), ([1, 6, 4], [[1], [3, 3], [2, 7, 1]]), ([5, 2], [[4], []])]
HEADS = (4, 2, 2)
"""Of queries, keys and values."""


def make_rows(prompts, answers, **options):
    torch.manual_seed(0)
    count = sum(prompts) + sum(map(sum, answers))
    return [torch.randn(count, heads, 8, requires_grad=True, **options) for heads in HEADS]


def test_a_prompt_sees_itself_and_an_answer_its_prompt_and_itself():
    found = flash.Sequences.build([3, 2], [[2, 1], [3]])
    assert found.query_starts.tolist() == [0, 3, 5, 6, 8, 11]
    assert found.key_starts.tolist() == [0, 3, 8, 12, 14, 19]
    assert found.key_tokens.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5, 6, 7, 6, 7, 8, 9, 10]
    assert (found.most_queries, found.most_keys) == (3, 5)
    assert found.query_starts.dtype == found.key_starts.dtype == torch.int32


def test_what_predicts_sees_no_answer_s_last_token():
    found = flash.Sequences.build([3, 2], [[2, 1], [3]], predictors=True)
    assert found.query_starts.tolist() == [0, 2, 3, 6]
    assert found.key_starts.tolist() == [0, 4, 7, 11]
    assert found.key_tokens.tolist() == [0, 1, 2, 3, 0, 1, 2, 6, 7, 8, 9]
    assert (found.most_queries, found.most_keys) == (3, 4)


@pytest.mark.parametrize(("prompts", "answers"), TREES)
def test_sequences_attend_as_padded_blocks(prompts, answers, monkeypatch):
    monkeypatch.setattr(flash, "varlen", one_after_another)
    rows, layout, places = make_rows(prompts, answers), TreeLayout.build(prompts, answers), predictors(prompts, answers)
    asked = rows[0][places], *rows[1:]
    for blocks, alone in (
        (attend(*rows, layout), flash.attend(*rows, layout.sequences)),
        (attend_from_predictors(*asked, layout), flash.attend(*asked, layout.predictor_sequences)),
    ):
        weight = torch.randn_like(blocks)
        torch.testing.assert_close(blocks, alone, atol=1e-6, rtol=1e-5)
        gradients = [torch.autograd.grad((each * weight).sum(), rows, retain_graph=True) for each in (blocks, alone)]
        torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-5)


def test_a_key_gets_the_gradients_of_all_who_see_it_added_up_in_float32():
    row = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    picked = flash._Select.apply(row, torch.tensor([0, 1, 0, 0]))
    assert picked.flatten().tolist() == [1.0, 1.0, 1.0, 1.0]
    # Added one by one in bfloat16, 256 would stay 256.
    picked.backward(torch.tensor([[256.0], [5.0], [1.0], [1.0]], dtype=torch.bfloat16))
    assert row.grad.flatten().tolist() == [258.0, 5.0]


@pytest.mark.parametrize(("prompts", "answers"), TREES)
def test_the_kernel_takes_these_sequences_and_has_a_gradient(prompts, answers):
    rows = make_rows(prompts, answers, device="meta", dtype=torch.bfloat16)
    layout = TreeLayout.build(prompts, answers).to(torch.device("meta"))
    output = flash.attend(*rows, layout.sequences, scale=0.5)
    assert (output.shape, output.dtype) == (rows[0].shape, torch.bfloat16)
    gradients = torch.autograd.grad(output.sum(), rows)
    assert [each.shape for each in gradients] == [each.shape for each in rows]


def test_nothing_on_a_cpu_fits_the_kernel():
    assert not flash.fits(torch.zeros(3, 4, 64, dtype=torch.bfloat16))
