"""Rows of trees: what `learners.flash.varlen` computes, in plain torch, and which tokens predict."""

import torch
from torch.nn.functional import scaled_dot_product_attention


def one_after_another(query, key, value, sequences, **options):
    """Every sequence by itself: its last query sees all its keys, the one before it all but the last, and so on."""
    outputs = []
    for number in range(len(sequences.query_starts) - 1):
        first, end = sequences.query_starts[number : number + 2]
        start, stop = sequences.key_starts[number : number + 2]
        mask = torch.ones(end - first, stop - start, dtype=torch.bool).tril(stop - start - (end - first))
        parts = (each.transpose(0, 1) for each in (query[first:end], key[start:stop], value[start:stop]))
        output = scaled_dot_product_attention(*parts, attn_mask=mask, enable_gqa=True, **options)
        outputs.append(output.transpose(0, 1))
    return torch.cat(outputs)


def predictors(prompts, answers):
    """Places of the tokens that predict an answer's: the prompt's last, then the answer's but its last."""
    places, start = [], 0
    for length, sizes in zip(prompts, answers, strict=True):
        last, start = start + length - 1, start + length
        for size in sizes:
            places += [last, *range(start, start + size - 1)]
            start += size
    return torch.tensor(places)
