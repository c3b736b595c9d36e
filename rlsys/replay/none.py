"""Trains every round on its own examples alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from rlsys import registry
from rlsys.journal import Past
from rlsys.records import RoundPlan


@registry.replay("none")
@dataclass(kw_only=True)
class NoReplay:
    """Adds no examples."""

    produces: ClassVar[None] = None
    sources: ClassVar[tuple[str, ...]] = ()

    def check(self) -> None:
        """Check nothing: no data is needed."""

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples."""
        yield from examples
