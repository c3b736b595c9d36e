"""Turns records into micro-batches: each record becomes trees, and trees are packed by their number of tokens.

The kind of a record (`learners/examples/`) decides which trees the record becomes; it builds them with `TreeMaker`.
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
            budget: largest number of tokens of a micro-batch.
            score_token: the token that ends critiques.
        """
        self._processor, self._budget = processor, budget
        self._score_id = processor.token_id(score_token) if score_token else None

    @property
    def score_id(self) -> int:
        """The token that ends critiques.

        Raises:
            RefusedRecord: the objective has no score token.
        """
        if self._score_id is None:
            raise RefusedRecord("these records need an objective with a score token")
        return self._score_id

    def prompt_ids(self, prompt: Prompt, known: np.ndarray | None = None) -> np.ndarray:
        """int32 [S], the tokens of a prompt: `known` unchanged, or, if that is empty or `None`, the tokenized prompt."""
        return self._processor.prompt_ids(prompt) if known is None or not len(known) else known

    def branch(self, response: Response, round: int | None) -> Branch:
        """The branch of a response.

        It has the tokens that were sampled. Where only the text of the response is known, the text is tokenized, and the
        end-of-sequence token is added.

        Args:
            round: the round for which the response was sampled.

        Raises:
            RefusedRecord: the response holds a special token, or has no token that carries loss.
        """
        branch = self.foreign_branch(response)
        if response.sampled is not None:
            branch.rollout, branch.round = response, round
        return branch

    def foreign_branch(self, response: Response) -> Branch:
        """The branch of a response to another prompt. The logprobs recorded with the response do not hold for this prompt, so
        the branch goes without them; otherwise it is that of `branch`."""
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
        """The branch of a text and an ending token, which is end-of-sequence unless `end` gives another."""
        return Branch(token_ids=self._processor.response_ids(text, end))

    def process_together(self, prompts: Sequence[Prompt]) -> None:
        """Process the images of all prompts in one call; later calls, one per prompt, find them in the cache."""
        self._processor.images([image for prompt in prompts for image in prompt.images])

    def single(self, record: Any, sides: Sequence[tuple[Prompt, np.ndarray | None, Branch]]) -> Unit:
        """A unit of one example in which every response has a tree of its own.

        Args:
            sides: for each response its prompt, the prompt's tokens if they are known, and the branch of the response.
        """
        trees = [
            Tree(prompt_ids=self.prompt_ids(prompt, known), images=prompt.images, answers=[branch])
            for prompt, known, branch in sides
        ]
        return Unit(trees=trees, examples=[(record, tuple((number, 0) for number in range(len(trees))))])

    def shared(self, examples: Iterable[tuple[Any, Sequence[Branch]]]) -> list[Unit]:
        """Units in which the examples of one prompt share a tree, as long as the tree stays within the budget.

        Args:
            examples: records with `prompt` and `prompt_token_ids`, each with the branches of its responses.
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
        """Whether a unit's only tree stays within the budget when these responses are added.

        A response that the tree already has adds no tokens.
        """
        num_new = sum(len(branch.token_ids) for branch in branches if unit.trees[0].find(branch) is None)
        return num_new == 0 or unit.num_tokens + num_new <= self._budget


class Collator:
    """Turns records into micro-batches."""

    def __init__(
        self, processor: Processor, *, micro_batch_tokens: int, score_token: str | None = None, multiple: int = 1
    ) -> None:
        """
        Args:
            micro_batch_tokens: largest number of tokens of a row; a single example may be longer.
            score_token: the token that ends critiques; only `CritiquePair` records need it.
            multiple: the length of a row and the total length of its responses are padded to multiples of it.
        """
        self._processor = processor
        self._budget = micro_batch_tokens
        self._trees = TreeMaker(processor, budget=micro_batch_tokens, score_token=score_token)
        self._multiple = multiple

    def __call__(self, records: Sequence[Any]) -> list[MicroBatch]:
        """The micro-batches of records of one class; each example is in exactly one of them.

        Raises:
            RefusedRecord: a response holds a special token, or is empty.
        """
        if not records:
            return []
        units = kind_of(type(records[0])).units(records, self._trees)
        return [self._micro_batch(packed) for packed in pack(units, self._budget)]

    def of_trees(self, trees: Sequence[Tree]) -> list[MicroBatch]:
        """The micro-batches of some trees; they have no examples."""
        return [self._micro_batch(packed) for packed in pack([Unit(trees=[tree]) for tree in trees], self._budget)]

    def join(self, trees: Sequence[Tree]) -> MicroBatch:
        """One micro-batch of all trees, in their order.

        Without trees it holds a stub, on which a rank works while other ranks still have micro-batches.
        """
        return self._micro_batch([Unit(trees=list(trees) or [self._stub()])])

    def empty(self) -> MicroBatch:
        """A micro-batch of a stub, without examples."""
        return self.join([])

    def blank(self) -> Tree:
        """A tree whose prompt shows a dummy image, which is all zeros."""
        image = Image(pixels=np.zeros((_BLANK_PIXELS, _BLANK_PIXELS, 3), dtype=np.uint8))
        prompt = Prompt(id="blank", turns=(Turn(role="user", text=""),), images=(image,))
        tree = self._stub()
        return Tree(prompt_ids=self._processor.prompt_ids(prompt), images=prompt.images, answers=tree.answers)

    def _stub(self) -> Tree:
        token = np.array([self._processor.tokenizer.eos_token_id], dtype=np.int32)
        return Tree(prompt_ids=token, answers=[Branch(token_ids=token)])

    def _micro_batch(self, units: Sequence[Unit]) -> MicroBatch:
        return MicroBatch.of(units, self._processor, multiple=self._multiple)
