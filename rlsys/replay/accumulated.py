"""Trains every round on the examples of all rounds so far (RLHF Workflow, arXiv 2405.07863, section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from rlsys import registry
from rlsys.journal import Past
from rlsys.records import Replayed, RoundPlan


@registry.replay("accumulated")
@dataclass(kw_only=True)
class Accumulated:
    """Adds the examples of earlier rounds after the round's own examples, the oldest first.

    Only examples of the class that the round trains on are added; a round that made examples of another class contributes none.
    """

    produces: ClassVar[None] = None
    sources: ClassVar[tuple[str, ...]] = ("earlier_rounds",)

    def check(self) -> None:
        """Check nothing: the examples come from the run's own journal."""

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples, then those of earlier rounds. The own examples come first so that training can begin while
        later ones are still being made.
        """
        yield from examples
        for example in past.examples():
            yield Replayed(source=self.sources[0], example=example)
