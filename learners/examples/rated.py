"""Responses that are rated good or bad individually."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from learners.examples.kinds import ExampleKind, example_kind, tokens_before, tokens_in
from learners.trees import Branch, Unit
from rlsys.objectives.inputs import RatedInputs
from rlsys.records import RatedResponse

if TYPE_CHECKING:
    from learners.answers import Answers
    from learners.collate import TreeMaker
    from learners.micro_batch import MicroBatch


@example_kind(RatedResponse)
class Rated(ExampleKind):
    """The responses to a prompt share its tree. If the objective needs mismatched responses, one example of every prompt of the
    batch also adds a response to another prompt to the tree.
    """

    inputs_type = RatedInputs

    def completed(self, batch: Sequence[RatedResponse], needs: frozenset[str]) -> list[RatedResponse]:
        """The batch, in which the first example of each prompt also has the first response to the next prompt as its mismatched
        response.
        """
        if "mismatched" not in needs:
            return list(batch)
        first: dict[str, int] = {}
        for place, record in enumerate(batch):
            first.setdefault(record.prompt.id, place)
        places = list(first.values())
        result = list(batch)
        if len(places) > 1:
            for place, other in zip(places, places[1:] + places[:1], strict=True):
                result[place] = replace(batch[place], mismatched=batch[other].response)
        return result

    def units(self, records: Sequence[RatedResponse], trees: TreeMaker) -> list[Unit]:
        return trees.shared((record, self._branches(record, trees)) for record in records)

    def _branches(self, record: RatedResponse, trees: TreeMaker) -> list[Branch]:
        own = trees.branch(record.response, record.round)
        if record.mismatched is None:
            return [own]
        return [own, trees.foreign_branch(record.mismatched)]

    def inputs(self, batch: MicroBatch, answers: Answers) -> RatedInputs:
        return RatedInputs(
            responses=answers.at(0),
            is_desirable_B=answers.truths([record.is_desirable for record, _ in batch.examples]),
            mismatched=answers.at(1),
        )

    def cost(self, record: RatedResponse) -> float:
        more = 0.0 if record.mismatched is None else tokens_in(record.mismatched)
        return tokens_before(record) + tokens_in(record.response) + more
