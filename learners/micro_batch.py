"""A micro-batch: some trees as the tensors of one pass through the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from learners.attention import TreeLayout
from learners.padding import Padding
from learners.tokens import ImageTensors, Processor
from learners.trees import Branch, Tree, Unit


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """The input of one pass through the model.

    Letters in shapes: N tokens of the row, L tokens of all responses, A responses. Padding counts in N but not in L and A.
    """

    trees: list[Tree]
    examples: list[tuple[Any, tuple[int, ...]]]
    """Each example's record, and the numbers of its responses in this micro-batch."""
    token_ids: torch.Tensor
    """int64 [N], tree by tree the prompt and then the responses; padding comes last."""
    predict: torch.Tensor
    """int64 [L], the position whose hidden state predicts each response token; longer than L if responses were padded."""
    targets: torch.Tensor
    """int64 [L], the response tokens."""
    loss_mask: torch.Tensor
    """float32 [L], 1 where a token carries loss, else 0."""
    answer_of_token: torch.Tensor
    """int64 [L], the number of the response that each token belongs to, ascending."""
    last_token: torch.Tensor
    """int64 [A], the position in [L] of the last token of each response."""
    layout: TreeLayout
    images: list[ImageTensors]
    """The distinct images of the micro-batch."""
    image_order: list[int]
    """For each image shown in the row, in order, its index in `images`."""

    @classmethod
    def of(cls, units: Sequence[Unit], processor: Processor, *, multiple: int = 1) -> MicroBatch:
        """The micro-batch of all trees of some units, in their order.

        Args:
            multiple: the length of the row and the total length of its responses are padded to multiples of it.
        """
        trees = [tree for unit in units for tree in unit.trees]
        images = [image for tree in trees for image in tree.images]
        distinct = {image.digest: image for image in images}
        order = {digest: number for number, digest in enumerate(distinct)}
        prompts = [len(tree.prompt_ids) for tree in trees]
        answers = [[len(answer.token_ids) for answer in tree.answers] for tree in trees]
        padding = Padding.of(prompts, answers, multiple)
        answers[-1] += padding.answers
        return cls(
            trees=trees,
            examples=_number_answers(units),
            images=processor.images(list(distinct.values())),
            image_order=[order[image.digest] for image in images],
            layout=TreeLayout.build([*prompts, *padding.prompts], [*answers, *([] for _ in padding.prompts)]),
            **_row(trees, padding, token=processor.tokenizer.eos_token_id),
        )

    @property
    def num_answers(self) -> int:
        return len(self.last_token)

    @property
    def answers(self) -> list[Branch]:
        """All A responses, in their order."""
        return [answer for tree in self.trees for answer in tree.answers]

    @property
    def num_target_tokens(self) -> int:
        return len(self.targets)

    @property
    def num_loss_tokens(self) -> int:
        """Number of tokens that carry loss in all examples; a response that is in several examples counts in each."""
        counts = np.add.reduceat(self.loss_mask.numpy(), self.starts) if self.num_answers else []
        return int(sum(counts[answer] for _, answers in self.examples for answer in answers))

    @property
    def starts(self) -> np.ndarray:
        """int64 [A], the position in [L] of the first token of each response."""
        return np.concatenate([[0], self.last_token.numpy()[:-1] + 1]).astype(np.int64)


def _number_answers(units: Sequence[Unit]) -> list[tuple[Any, tuple[int, ...]]]:
    examples = []
    first = 0
    for unit in units:
        starts = []
        for tree in unit.trees:
            starts.append(first)
            first += len(tree.answers)
        examples += [
            (record, tuple(starts[tree] + place for tree, place in places)) for record, places in unit.examples
        ]
    return examples


def _row(trees: Sequence[Tree], padding: Padding, *, token: int) -> dict[str, torch.Tensor]:
    """The tensors of a row, by the names of the fields of `MicroBatch`.

    Args:
        token: the id that stands in the padding.
    """
    tokens, predict, targets, masks, owners, ends = [], [], [], [], [], []
    start = length = 0
    for tree in trees:
        tokens.append(tree.prompt_ids)
        start += len(tree.prompt_ids)
        last_of_prompt = start - 1
        for answer in tree.answers:
            size = len(answer.token_ids)
            tokens.append(answer.token_ids)
            predict.append(np.concatenate([[last_of_prompt], np.arange(start, start + size - 1)]))
            targets.append(answer.token_ids)
            masks.append(np.ones(size) if answer.loss_mask is None else answer.loss_mask)
            owners.append(np.full(size, len(ends)))
            start += size
            length += size
            ends.append(length - 1)
    more_answers = sum(padding.answers)
    tokens.append(np.full(more_answers + sum(padding.prompts), token))
    predict.append(np.zeros(more_answers))
    return {
        "token_ids": _int64(tokens),
        "predict": _int64(predict),
        "targets": _int64(targets),
        "loss_mask": torch.from_numpy(np.concatenate(masks).astype(np.float32)),
        "answer_of_token": _int64(owners),
        "last_token": torch.tensor(ends, dtype=torch.int64),
    }


def _int64(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
