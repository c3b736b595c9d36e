"""Chunked log-probabilities against the plain formula, and the attention of trees against a dense mask."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from learners import attention, logprobs
from learners.attention import TreeLayout, tree_attention
from learners.logprobs import LogprobHead, chunk_rows, token_logprobs


def plain(hidden, weight, targets, bias=None):
    logits = torch.nn.functional.linear(hidden, weight, bias)
    chosen = logits.gather(1, targets[:, None])[:, 0]
    return logits.log_softmax(1).gather(1, targets[:, None])[:, 0], chosen


def test_log_probabilities_of_two_equal_logits():
    logps, logits = token_logprobs(torch.tensor([[2.0]]), torch.tensor([[1.5], [1.5]]), torch.tensor([1]), chunk=8)
    assert logps.item() == pytest.approx(-math.log(2))
    assert logits.item() == pytest.approx(3.0)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])
@pytest.mark.parametrize("has_bias", [False, True])
def test_any_chunking_gives_the_plain_values_and_gradients(chunk, has_bias):
    torch.manual_seed(chunk)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(17, dtype=torch.float64, requires_grad=True) if has_bias else None
    targets = torch.randint(0, 17, (10,))
    mix = torch.randn(2, 10, dtype=torch.float64)
    leaves = [hidden, weight] + ([bias] if has_bias else [])
    results = []
    for compute in (plain, lambda *a: token_logprobs(*a[:3], bias_V=bias, chunk=chunk)):
        logps, logits = compute(hidden, weight, targets, bias)
        gradients = torch.autograd.grad((mix[0] * logps).sum() + (mix[1] * logits).sum(), leaves)
        results.append([logps, logits, *gradients])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk", [3, 64])
def test_the_logit_of_a_token_is_read_at_every_position_with_its_gradient(chunk):
    torch.manual_seed(0)
    hidden = torch.randn(10, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(17, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 17, (10,))
    targets[3] = 5  # where it is the target as well, both gradients arrive
    mix = torch.randn(3, 10, dtype=torch.float64)

    def mixed(logps, logits, values):
        return (mix[0] * logps).sum() + (mix[1] * logits).sum() + (mix[2] * values).sum()

    expected = [*plain(hidden, weight, targets), torch.nn.functional.linear(hidden, weight)[:, 5]]
    found = token_logprobs(hidden, weight, targets, chunk=chunk, value_id=5)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.double(), one, atol=1e-5, rtol=1e-5)
    gradients = [torch.autograd.grad(mixed(*values), [hidden, weight]) for values in (expected, found)]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)


def test_the_head_returns_values_only_when_they_are_asked_for():
    head = LogprobHead.take_over(torch.nn.Linear(4, 9), chunk_mib=1)
    hidden, targets = torch.randn(3, 4), torch.tensor([1, 2, 8])
    assert head(hidden, targets).shape == (2, 3)
    head.value_id = 7
    torch.testing.assert_close(head(hidden, targets)[2], head(hidden)[:, 7])


def test_logits_of_a_whole_batch_are_never_held():
    rows, vocabulary = 64, 50_000
    held = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple) else [result]:
                if isinstance(tensor, torch.Tensor):
                    held.append(tensor.numel())
            return result

    hidden = torch.randn(rows, 4, requires_grad=True)
    weight = torch.randn(vocabulary, 4, requires_grad=True)
    with Watch():
        logps, _ = token_logprobs(hidden, weight, torch.zeros(rows, dtype=torch.int64), chunk=8)
        logps.sum().backward()
    assert max(held) == 8 * vocabulary


def test_chunk_of_a_large_vocabulary():
    assert chunk_rows(150_000, 64) == 111
    assert chunk_rows(150_000_000, 1) == 1


def test_counts_that_differ_are_refused():
    with pytest.raises(ValueError, match="3 hidden states for 2 targets"):
        token_logprobs(torch.zeros(3, 2), torch.zeros(4, 2), torch.zeros(2, dtype=torch.int64), chunk=4)


def test_the_head_keeps_the_parameters_it_takes_over():
    embedding = torch.nn.Embedding(9, 4)
    plain_head = torch.nn.Linear(4, 9, bias=False)
    plain_head.weight = embedding.weight
    head = LogprobHead.take_over(plain_head, chunk_mib=1)
    assert head.weight is embedding.weight
    hidden = torch.randn(3, 4)
    torch.testing.assert_close(head(hidden), plain_head(hidden))
    logps, _ = head(hidden, torch.tensor([1, 2, 8]))
    torch.testing.assert_close(logps, plain(hidden, plain_head.weight, torch.tensor([1, 2, 8]))[0])


def test_the_size_of_a_piece_follows_the_device_unless_it_is_given(monkeypatch):
    asked = []
    monkeypatch.setattr(logprobs, "chunk_rows", lambda _, mib: asked.append(mib) or 1)
    for given in (0, 3):
        LogprobHead.take_over(torch.nn.Linear(4, 9), chunk_mib=given)(torch.zeros(1, 4), torch.tensor([1]))
    assert asked == [64, 3] and logprobs.CHUNK_MIB[True] == 512


def dense_mask(prompts, answers):
    """Who may see whom, written down token by token."""
    tags = []
    for tree, length in enumerate(prompts):
        tags += [(tree, -1)] * length
        for number, size in enumerate(answers[tree]):
            tags += [(tree, number)] * size
    count = len(tags)
    mask = torch.zeros(count, count, dtype=torch.bool)
    for i, (tree, branch) in enumerate(tags):
        for j, (other, segment) in enumerate(tags[: i + 1]):
            mask[i, j] = tree == other and segment in (-1, branch)
    return mask


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [
        ([3], [[2, 4]]),
        ([3, 3], [[2], [5, 1, 2]]),
        ([1, 6, 4], [[1], [3, 3], [2, 7, 1]]),
        ([5], [[1]]),
        ([4, 3, 2], [[2, 3], [], []]),
    ],
)
@pytest.mark.parametrize("key_heads", [1, 4])
@pytest.mark.parametrize("piece", [attention.PIECE, 2])
def test_tree_attention_is_dense_attention_under_the_block_mask(prompts, answers, key_heads, piece, monkeypatch):
    monkeypatch.setattr(attention, "PIECE", piece)
    torch.manual_seed(0)
    count = sum(prompts) + sum(map(sum, answers))
    query = torch.randn(1, 4, count, 8, requires_grad=True)
    key = torch.randn(1, key_heads, count, 8, requires_grad=True)
    value = torch.randn(1, key_heads, count, 8, requires_grad=True)
    weight = torch.randn(1, count, 4, 8)
    layout = TreeLayout.build(prompts, answers)

    def gradients(output):
        return [output, *torch.autograd.grad((output * weight).sum(), [query, key, value])]

    found = gradients(tree_attention(None, query, key, value, None, tree_layout=layout)[0])
    repeat = 4 // key_heads
    dense = scaled_dot_product_attention(
        query,
        key.repeat_interleave(repeat, 1),
        value.repeat_interleave(repeat, 1),
        attn_mask=dense_mask(prompts, answers),
    )
    for one, other in zip(found, gradients(dense.transpose(1, 2)), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
