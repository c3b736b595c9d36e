"""Annotated pairs for a critique reward model, which writes a critique and then scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from learners.examples.kinds import ExampleKind, example_kind
from learners.trees import Unit
from rlsys.objectives.inputs import CritiqueInputs
from rlsys.records import CritiquePair

if TYPE_CHECKING:
    from learners.answers import Answers
    from learners.collate import TreeMaker
    from learners.micro_batch import MicroBatch


@example_kind(CritiquePair)
class Critiques(ExampleKind):
    """Each pair has two prompts, each with a critique that ends with the score token. Both trees are in one micro-batch."""

    inputs_type = CritiqueInputs

    def units(self, records: Sequence[CritiquePair], trees: TreeMaker) -> list[Unit]:
        trees.process_together([record.chosen_prompt for record in records])
        end = trees.score_id
        return [
            trees.single(
                record,
                [
                    (record.chosen_prompt, None, trees.text_branch(record.chosen_critique, end)),
                    (record.rejected_prompt, None, trees.text_branch(record.rejected_critique, end)),
                ],
            )
            for record in records
        ]

    def inputs(self, batch: MicroBatch, answers: Answers) -> CritiqueInputs:
        has_B = [bool(pair.chosen_critique and pair.rejected_critique) for pair, _ in batch.examples]
        return CritiqueInputs(
            chosen=answers.at(0),
            rejected=answers.at(1),
            chosen_scores_B=answers.last_logits(0),
            rejected_scores_B=answers.last_logits(1),
            has_critiques_B=answers.truths(has_B),
        )

    def cost(self, record: CritiquePair) -> float:
        return 2.0 + len(record.chosen_critique) + len(record.rejected_critique)

    def group(self, record: CritiquePair) -> str:
        return record.chosen_prompt.id
