"""Demonstrations, for imitation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learners.examples.kinds import ExampleKind, example_kind, tokens_before, tokens_in
from learners.trees import Unit
from rlsys.objectives.inputs import SequenceInputs
from rlsys.records import Demonstration

if TYPE_CHECKING:
    from learners.answers import Answers
    from learners.collate import TreeMaker
    from learners.micro_batch import MicroBatch


@example_kind(Demonstration)
class Demonstrations(ExampleKind):
    """Every demonstration is a tree of its own. A data set seldom has two demonstrations of one prompt, and separate trees give
    the ranks shards of even cost.
    """

    inputs_type = SequenceInputs

    def units(self, records: Sequence[Demonstration], trees: TreeMaker) -> list[Unit]:
        trees.process_together([record.prompt for record in records])
        return [
            trees.single(
                record, [(record.prompt, record.prompt_token_ids, trees.branch(record.response, record.round))]
            )
            for record in records
        ]

    def inputs(self, batch: MicroBatch, answers: Answers) -> SequenceInputs:
        return SequenceInputs(responses=answers.at(0))

    def cost(self, record: Demonstration) -> float:
        return tokens_before(record) + tokens_in(record.response)
