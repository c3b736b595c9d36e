"""Probes: fixed sequences that are scored and not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from learners.examples.kinds import ExampleKind, example_kind
from learners.trees import Branch, Unit
from rlsys.records import Probe

if TYPE_CHECKING:
    from learners.collate import TreeMaker


@example_kind(Probe)
class Probes(ExampleKind):
    """Every probe is a tree of its own, and its tokens are used unchanged."""

    def units(self, records: Sequence[Probe], trees: TreeMaker) -> list[Unit]:
        return [
            trees.single(
                record,
                [
                    (
                        record.prompt,
                        np.array(record.prompt_token_ids, dtype=np.int32),
                        Branch(token_ids=np.array(record.response_token_ids, dtype=np.int32)),
                    )
                ],
            )
            for record in records
        ]
