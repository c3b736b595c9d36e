"""From records to micro-batches: examples as trees, packed by tokens.

Which trees a record becomes is said by its kind (`learners/examples/`), with what `TreeMaker` offers to all kinds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from learners.examples.kinds import kind_of
from learners.micro_batch import MicroBatch
from learners.tokens import Processor, RefusedRecord
from learners.trees import Branch, Tree, Unit, pack
from rlsys.records import Image, Prompt, Response, Turn

_BLANK_PIXELS = 56


class TreeMaker:
    """Makes trees of prompts and responses."""

    def __init__(self, processor: Processor, *, budget: int, score_token: str | None = None) -> None:
        """
        Args:
            budget: tokens of a micro-batch.
            score_token: ends critiques.
        """
        self._processor, self._budget = processor, budget
        self._score_id = processor.token_id(score_token) if score_token else None

    @property
    def score_id(self) -> int:
        """The token that ends critiques.

        Raises:
            RefusedRecord: the objective has none.
        """
        if self._score_id is None:
            raise RefusedRecord("these records need an objective with a score token")
        return self._score_id

    def prompt_ids(self, prompt: Prompt, known: np.ndarray | None = None) -> np.ndarray:
        """int32 [S]: `known` as it is, unless it is empty or `None`."""
        return self._processor.prompt_ids(prompt) if known is None or not len(known) else known

    def branch(self, response: Response, round: int | None) -> Branch:
        """A response as it was sampled, or, where only its text is known, tokenized and ended by end-of-sequence.

        Args:
            round: for which it was sampled.

        Raises:
            RefusedRecord: it holds a special token, or no token that carries loss.
        """
        branch = self.foreign_branch(response)
        if response.sampled is not None:
            branch.rollout, branch.round = response, round
        return branch

    def foreign_branch(self, response: Response) -> Branch:
        """As `branch`, for a response to another prompt: what is recorded of it does not hold here."""
        if not len(response.token_ids):
            if response.sampled is not None:
                raise RefusedRecord(f"a rollout without tokens: {response.text!r}")
            return self.text_branch(response.text)
        mask = response.loss_mask
        if mask is not None and len(mask) != len(response.token_ids):
            raise RefusedRecord(
                f"{len(mask)} loss mask entries for {len(response.token_ids)} tokens: {response.text!r}"
            )
        if mask is not None and not mask.any():
            raise RefusedRecord(f"a response without a token that carries loss: {response.text!r}")
        self._processor.check_answer(response.token_ids, response.text, mask)
        return Branch(token_ids=response.token_ids, loss_mask=mask)

    def text_branch(self, text: str, end: int | None = None) -> Branch:
        """A text and an ending token, end-of-sequence unless another is given."""
        return Branch(token_ids=self._processor.response_ids(text, end))

    def process_together(self, prompts: Sequence[Prompt]) -> None:
        """Process new pictures in one call; later ones, a prompt at a time, find them in the cache."""
        self._processor.images([image for prompt in prompts for image in prompt.images])

    def single(self, record: Any, sides: Sequence[tuple[Prompt, np.ndarray | None, Branch]]) -> Unit:
        """A unit of one example, each of its responses a tree of its own.

        Args:
            sides: prompt, its tokens if they are known, and the response.
        """
        trees = [
            Tree(prompt_ids=self.prompt_ids(prompt, known), images=prompt.images, answers=[branch])
            for prompt, known, branch in sides
        ]
        return Unit(trees=trees, examples=[(record, tuple((number, 0) for number in range(len(trees))))])

    def shared(self, examples: Iterable[tuple[Any, Sequence[Branch]]]) -> list[Unit]:
        """Units in which examples of one prompt share a tree, as far as it stays within the budget.

        Args:
            examples: records with `prompt` and `prompt_token_ids`, and the responses of each.
        """
        open_units: dict[tuple, Unit] = {}
        units = []
        for record, branches in examples:
            prompt_ids = self.prompt_ids(record.prompt, record.prompt_token_ids)
            key = prompt_ids.tobytes(), tuple(image.digest for image in record.prompt.images)
            unit = open_units.get(key)
            if unit is None or not self._has_room(unit, branches):
                unit = open_units[key] = Unit(trees=[Tree(prompt_ids=prompt_ids, images=record.prompt.images)])
                units.append(unit)
            unit.examples.append((record, tuple((0, unit.trees[0].add(branch)) for branch in branches)))
        return units

    def _has_room(self, unit: Unit, branches: Sequence[Branch]) -> bool:
        """Whether a unit's only tree stays within the budget with these responses, those that it has counted once."""
        num_new = sum(len(branch.token_ids) for branch in branches if unit.trees[0].find(branch) is None)
        return num_new == 0 or unit.num_tokens + num_new <= self._budget


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
        self._trees = TreeMaker(processor, budget=micro_batch_tokens, score_token=score_token)
        self._multiple = multiple

    def __call__(self, records: Sequence[Any]) -> list[MicroBatch]:
        """Micro-batches of records of one class, each example in exactly one of them.

        Raises:
            RefusedRecord: an answer holds a special token, or is empty.
        """
        if not records:
            return []
        units = kind_of(type(records[0])).units(records, self._trees)
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

    def _micro_batch(self, units: Sequence[Unit]) -> MicroBatch:
        return MicroBatch.of(units, self._processor, multiple=self._multiple)
