"""Every round trains on the examples of all rounds so far (RLHF Workflow, arXiv 2405.07863, section 3)."""

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
    """Brings, after the round's own examples, those of the rounds before, the oldest first. They are of the class that the
    round trains on: a round that made examples of another class contributes none.
    """

    produces: ClassVar[None] = None
    sources: ClassVar[tuple[str, ...]] = ("earlier_rounds",)

    def check(self) -> None:
        """The journal of the run has what is brought."""

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples first, so that training begins while later ones are still being made."""
        yield from examples
        for example in past.examples():
            yield Replayed(source=self.sources[0], example=example)
