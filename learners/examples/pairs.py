"""Preference pairs: two responses after one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learners.examples.kinds import ExampleKind, example_kind, tokens_before, tokens_in
from learners.trees import Unit
from rlsys.objectives.inputs import PairInputs
from rlsys.records import PreferencePair

if TYPE_CHECKING:
    from learners.answers import Answers
    from learners.collate import TreeMaker
    from learners.micro_batch import MicroBatch


@example_kind(PreferencePair)
class Pairs(ExampleKind):
    """The pairs of a prompt share its tree, and a response is computed once for all pairs that it is part of."""

    inputs_type = PairInputs

    def units(self, records: Sequence[PreferencePair], trees: TreeMaker) -> list[Unit]:
        return trees.shared(
            (pair, [trees.branch(pair.chosen, pair.round), trees.branch(pair.rejected, pair.round)]) for pair in records
        )

    def inputs(self, batch: MicroBatch, answers: Answers) -> PairInputs:
        return PairInputs(
            chosen=answers.at(0),
            rejected=answers.at(1),
            beta_scale_B=answers.row([pair.beta_scale for pair, _ in batch.examples]),
        )

    def cost(self, record: PreferencePair) -> float:
        return tokens_before(record) + tokens_in(record.chosen) + tokens_in(record.rejected)
