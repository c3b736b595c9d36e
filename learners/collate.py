"""From records to micro-batches: examples as trees, packed by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from learners.micro_batch import MicroBatch
from learners.tokens import Processor, RefusedRecord
from learners.trees import Branch, Tree, Unit, pack
from rlsys.records import CritiquePair, Demonstration, Image, PreferencePair, Probe, Prompt, Response, Turn

_BLANK_PIXELS = 56


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
        return Tree(prompt_ids=token, answers=[Branch(token_ids=token)])

    def _demonstrations(self, records: Sequence[Demonstration]) -> list[Unit]:
        self._process_together([record.prompt for record in records])
        units = []
        for record in records:
            answer = Branch(token_ids=self._processor.response_ids(record.response))
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
                    answers=[Branch(token_ids=self._processor.response_ids(critique, self._score_id))],
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
            version = record.chosen.sampled.policy_version
            key = (record.prompt_token_ids.tobytes(), images, version, record.round)
            answers = [self._sampled(record.chosen), self._sampled(record.rejected)]
            unit = open_units.get(key)
            if unit is None or not self._has_room(unit, answers):
                tree = Tree(
                    prompt_ids=record.prompt_token_ids,
                    images=record.prompt.images,
                    policy_version=version,
                    round=record.round,
                )
                unit = open_units[key] = Unit(trees=[tree])
                units.append(unit)
            places = tuple((0, unit.trees[0].add(answer)) for answer in answers)
            unit.examples.append((record, places))
        return units

    def _has_room(self, unit: Unit, answers: Sequence[Branch]) -> bool:
        """Whether a unit's only tree stays within the budget with these answers, those that it has counted once."""
        num_new = sum(len(answer.token_ids) for answer in answers if unit.trees[0].find(answer) is None)
        return num_new == 0 or unit.num_tokens + num_new <= self._budget

    def _sampled(self, rollout: Response) -> Branch:
        if not len(rollout.token_ids):
            raise RefusedRecord(f"a rollout without tokens: {rollout.text!r}")
        self._processor.check_answer(rollout.token_ids, rollout.text)
        return Branch(token_ids=rollout.token_ids, rollout=rollout)

    def _probes(self, records: Sequence[Probe]) -> list[Unit]:
        return [
            Unit(
                trees=[
                    Tree(
                        prompt_ids=np.array(record.prompt_token_ids, dtype=np.int32),
                        images=record.prompt.images,
                        answers=[Branch(token_ids=np.array(record.response_token_ids, dtype=np.int32))],
                    )
                ],
                examples=[(record, ((0, 0),))],
            )
            for record in records
        ]

    def _micro_batch(self, units: Sequence[Unit]) -> MicroBatch:
        return MicroBatch.of(units, self._processor, multiple=self._multiple)
