"""Scored responses, for policy gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learners.examples.kinds import ExampleKind, example_kind, tokens_before, tokens_in
from learners.trees import Unit
from rlsys.objectives.inputs import ScoredInputs
from rlsys.records import ScoredResponse

if TYPE_CHECKING:
    from learners.answers import Answers
    from learners.collate import TreeMaker
    from learners.micro_batch import MicroBatch


@example_kind(ScoredResponse)
class Responses(ExampleKind):
    """The responses to a prompt share its tree, and the copies of a response share its branch."""

    inputs_type = ScoredInputs

    def units(self, records: Sequence[ScoredResponse], trees: TreeMaker) -> list[Unit]:
        return trees.shared((record, [trees.branch(record.response, record.round)]) for record in records)

    def inputs(self, batch: MicroBatch, answers: Answers) -> ScoredInputs:
        return ScoredInputs(
            responses=answers.at(0),
            advantages_B=answers.row([record.advantage for record, _ in batch.examples]),
            scores_B=answers.row([record.score for record, _ in batch.examples]),
        )

    def cost(self, record: ScoredResponse) -> float:
        return tokens_before(record) + tokens_in(record.response)
