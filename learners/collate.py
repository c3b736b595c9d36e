"""From examples to micro-batches: prompts with all their distinct answers as trees, packed by tokens.

    pairs (p, a > b), (p, a > c), (q, d > e)   ->   tree p: a, b, c    tree q: d, e

A prompt and its images go through the model once for all answers to them, and an answer once for all pairs it takes
part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from learners.attention import TreeLayout
from learners.filler import Filler
from learners.tokens import ImageTensors, Processor, RefusedRecord
from rlsys.records import CritiquePair, Demonstration, Image, PreferencePair, Probe, Prompt, Rollout, Turn

_BLANK_PIXELS = 56


@dataclass(kw_only=True, eq=False)
class Answer:
    """One branch of a tree."""

    token_ids: np.ndarray
    """int32 [T], at least one."""
    rollout: Rollout | None = None
    """Where the answer was sampled by an engine: its log-probabilities are recorded there."""


@dataclass(kw_only=True, eq=False)
class Tree:
    """One prompt and its distinct answers."""

    prompt_ids: np.ndarray
    """int32 [S], image placeholders expanded."""
    images: tuple[Image, ...] = ()
    answers: list[Answer] = field(default_factory=list)
    policy_version: int | None = None
    """Version that sampled the answers, if an engine did."""
    round: int | None = None
    """For which it did."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(answer.token_ids) for answer in self.answers)

    def add(self, answer: Answer) -> int:
        """Place of the answer among the tree's, which it takes if it is new."""
        for place, known in enumerate(self.answers):
            if np.array_equal(known.token_ids, answer.token_ids):
                return place
        self.answers.append(answer)
        return len(self.answers) - 1


@dataclass(kw_only=True, eq=False)
class Unit:
    """Trees that must share a micro-batch, and the examples made of them."""

    trees: list[Tree]
    examples: list[tuple[Any, tuple[tuple[int, int], ...]]] = field(default_factory=list)
    """The record, and (tree, place) of each of its answers, in the order of its class."""

    @property
    def num_tokens(self) -> int:
        return sum(tree.num_tokens for tree in self.trees)


@dataclass(frozen=True, kw_only=True, eq=False)
class MicroBatch:
    """What goes through the model at once. N tokens of the row, L tokens of all answers, A answers, fillers not counted."""

    trees: list[Tree]
    examples: list[tuple[Any, tuple[int, ...]]]
    """The record and the numbers of its answers in this micro-batch."""
    token_ids: torch.Tensor
    """int64 [N], tree by tree: prompt, then answers; then what fills the row."""
    predict: torch.Tensor
    """int64 [L], the position whose hidden state predicts each answer token; some more, if answers were filled up."""
    targets: torch.Tensor
    """int64 [L]."""
    answer_of_token: torch.Tensor
    """int64 [L], ascending."""
    last_token: torch.Tensor
    """int64 [A], where in [L] each answer ends."""
    layout: TreeLayout
    images: list[ImageTensors]
    """Distinct pictures."""
    image_order: list[int]
    """Which of `images` each picture shown in the row is."""

    @property
    def num_answers(self) -> int:
        return len(self.last_token)

    @property
    def num_target_tokens(self) -> int:
        return len(self.targets)


class Collator:
    """Turns records into micro-batches."""

    def __init__(
        self, processor: Processor, *, micro_batch_tokens: int, score_token: str | None = None, multiple: int = 1
    ) -> None:
        """
        Args:
            micro_batch_tokens: bound on the row's tokens; a single example may be longer.
            score_token: ends critiques; needed for `CritiquePair` only.
            multiple: rows, and their answers together, are filled up to multiples of it.
        """
        self._processor = processor
        self._budget = micro_batch_tokens
        self._score_id = processor.token_id(score_token) if score_token else None
        self._multiple = multiple

    def __call__(self, records: Sequence[Any]) -> list[MicroBatch]:
        """Micro-batches of records of one class, each example in exactly one of them.

        Raises:
            RefusedRecord: an answer holds a special token, or is empty.
        """
        if not records:
            return []
        units = {
            Demonstration: self._demonstrations,
            PreferencePair: self._pairs,
            CritiquePair: self._critiques,
            Probe: self._probes,
        }[type(records[0])](records)
        return [self._micro_batch(packed) for packed in pack(units, self._budget)]

    def of_trees(self, trees: Sequence[Tree]) -> list[MicroBatch]:
        """Micro-batches of trees, without examples."""
        return [self._micro_batch(packed) for packed in pack([Unit(trees=[tree]) for tree in trees], self._budget)]

    def join(self, trees: Sequence[Tree]) -> MicroBatch:
        """One micro-batch of trees in their order; of none, what a rank works on while others still have some."""
        return self._micro_batch([Unit(trees=list(trees) or [self._stub()])])

    def empty(self) -> MicroBatch:
        """A micro-batch without examples."""
        return self.join([])

    def blank(self) -> Tree:
        """A tree that shows a picture without content."""
        image = Image(pixels=np.zeros((_BLANK_PIXELS, _BLANK_PIXELS, 3), dtype=np.uint8))
        prompt = Prompt(id="blank", turns=(Turn(role="user", text=""),), images=(image,))
        tree = self._stub()
        return Tree(prompt_ids=self._processor.prompt_ids(prompt), images=prompt.images, answers=tree.answers)

    def _stub(self) -> Tree:
        token = np.array([self._processor.tokenizer.eos_token_id], dtype=np.int32)
        return Tree(prompt_ids=token, answers=[Answer(token_ids=token)])

    def _demonstrations(self, records: Sequence[Demonstration]) -> list[Unit]:
        self._process_together([record.prompt for record in records])
        units = []
        for record in records:
            answer = Answer(token_ids=self._processor.response_ids(record.response))
            tree = Tree(
                prompt_ids=self._processor.prompt_ids(record.prompt), images=record.prompt.images, answers=[answer]
            )
            units.append(Unit(trees=[tree], examples=[(record, ((0, 0),))]))
        return units

    def _critiques(self, records: Sequence[CritiquePair]) -> list[Unit]:
        if self._score_id is None:
            raise RefusedRecord("CritiquePair records need an objective with a score token")
        self._process_together([record.chosen_prompt for record in records])
        units = []
        for record in records:
            sides = ((record.chosen_prompt, record.chosen_critique), (record.rejected_prompt, record.rejected_critique))
            trees = [
                Tree(
                    prompt_ids=self._processor.prompt_ids(prompt),
                    images=prompt.images,
                    answers=[Answer(token_ids=self._processor.response_ids(critique, self._score_id))],
                )
                for prompt, critique in sides
            ]
            units.append(Unit(trees=trees, examples=[(record, ((0, 0), (1, 0)))]))
        return units

    def _process_together(self, prompts: Sequence[Prompt]) -> None:
        """Process new pictures in one call; later ones, a prompt at a time, find them in the cache."""
        self._processor.images([image for prompt in prompts for image in prompt.images])

    def _pairs(self, records: Sequence[PreferencePair]) -> list[Unit]:
        """Pairs of one prompt and round share a tree, as far as it stays within the budget."""
        open_units: dict[tuple, Unit] = {}
        units = []
        for record in records:
            images = tuple(image.digest for image in record.prompt.images)
            key = (record.prompt_token_ids.tobytes(), images, record.policy_version, record.round)
            answers = [self._sampled(record.chosen), self._sampled(record.rejected)]
            extra = sum(len(answer.token_ids) for answer in answers)
            unit = open_units.get(key)
            if unit is None or unit.num_tokens + extra > self._budget:
                tree = Tree(
                    prompt_ids=record.prompt_token_ids,
                    images=record.prompt.images,
                    policy_version=record.policy_version,
                    round=record.round,
                )
                unit = open_units[key] = Unit(trees=[tree])
                units.append(unit)
            places = tuple((0, unit.trees[0].add(answer)) for answer in answers)
            unit.examples.append((record, places))
        return units

    def _sampled(self, rollout: Rollout) -> Answer:
        if not len(rollout.token_ids):
            raise RefusedRecord(f"a rollout without tokens: {rollout.text!r}")
        self._processor.check_answer(rollout.token_ids, rollout.text)
        return Answer(token_ids=rollout.token_ids, rollout=rollout)

    def _probes(self, records: Sequence[Probe]) -> list[Unit]:
        return [
            Unit(
                trees=[
                    Tree(
                        prompt_ids=np.array(record.prompt_token_ids, dtype=np.int32),
                        images=record.prompt.images,
                        answers=[Answer(token_ids=np.array(record.response_token_ids, dtype=np.int32))],
                    )
                ],
                examples=[(record, ((0, 0),))],
            )
            for record in records
        ]

    def _micro_batch(self, units: Sequence[Unit]) -> MicroBatch:
        trees = [tree for unit in units for tree in unit.trees]
        images = [image for tree in trees for image in tree.images]
        distinct = {image.digest: image for image in images}
        order = {digest: number for number, digest in enumerate(distinct)}
        prompts = [len(tree.prompt_ids) for tree in trees]
        answers = [[len(answer.token_ids) for answer in tree.answers] for tree in trees]
        filler = Filler.of(prompts, answers, self._multiple)
        answers[-1] += filler.answers
        return MicroBatch(
            trees=trees,
            examples=_number_answers(units),
            images=self._processor.images(list(distinct.values())),
            image_order=[order[image.digest] for image in images],
            layout=TreeLayout.build([*prompts, *filler.prompts], [*answers, *([] for _ in filler.prompts)]),
            **_row(trees, filler, token=self._processor.tokenizer.eos_token_id),
        )


def pack(units: Sequence[Unit], budget: int) -> list[list[Unit]]:
    """Units of like length together, each bin within the budget unless a single unit is not.

    Bins follow the units' order of length, longest first, so that the first pass through the model is the largest
    and memory does not grow afterwards.
    """
    bins: list[list[Unit]] = []
    filled = 0
    for unit in sorted(units, key=lambda unit: -unit.num_tokens):
        if not bins or filled + unit.num_tokens > budget:
            bins.append([])
            filled = 0
        bins[-1].append(unit)
        filled += unit.num_tokens
    return bins


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


def _row(trees: Sequence[Tree], filler: Filler, *, token: int) -> dict[str, torch.Tensor]:
    """
    Args:
        token: stands in what fills the row.
    """
    tokens, predict, targets, owners, ends = [], [], [], [], []
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
            owners.append(np.full(size, len(ends)))
            start += size
            length += size
            ends.append(length - 1)
    more_answers = sum(filler.answers)
    tokens.append(np.full(more_answers + sum(filler.prompts), token))
    predict.append(np.zeros(more_answers))
    return {
        "token_ids": _int64(tokens),
        "predict": _int64(predict),
        "targets": _int64(targets),
        "answer_of_token": _int64(owners),
        "last_token": torch.tensor(ends, dtype=torch.int64),
    }


def _int64(parts: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
