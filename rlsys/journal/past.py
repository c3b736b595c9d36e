"""What the rounds before a given round have left: their examples, their prompts, and the progress of their replays."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsys.journal.journal import Journal
from rlsys.records import Prompt, RolloutGroup, RoundReport


@dataclass(frozen=True, kw_only=True)
class Past:
    """The rounds before a given round, as the replay of that round sees them. A resumed run sees the same."""

    journal: Journal
    round: int
    """Number of the round; only the rounds before it are visible."""
    kind: type
    """Record class that the round trains on."""
    counts: dict[int, Mapping[str, int]] = field(default_factory=dict)
    """`RoundReport.replayed` of the rounds for which it is known; the counts of other rounds are read from the journal once."""

    def examples(self) -> Iterator[Any]:
        """All examples of class `kind` that these rounds have made, in order."""
        for round in range(self.round):
            yield from self.journal.read(round, self.kind)

    def replayed(self, source: str) -> int:
        """Number of examples of a source that these rounds have trained on, from the first round on."""
        return sum(self._counts_of(round).get(source, 0) for round in range(self.round))

    def prompts(self, ids: Collection[str]) -> dict[str, Prompt]:
        """The prompts with these ids, as far as these rounds have used them."""
        return find_prompts(self.journal, range(self.round), ids)

    def _counts_of(self, round: int) -> Mapping[str, int]:
        if round not in self.counts:
            reports = list(self.journal.read(round, RoundReport))
            self.counts[round] = reports[-1].replayed if reports else {}
        return self.counts[round]


def find_prompts(journal: Journal, rounds: Collection[int], ids: Collection[str]) -> dict[str, Prompt]:
    """The prompts with these ids in some rounds of a journal; ids that were not used are absent."""
    wanted, found = set(ids), {}
    for round in rounds:
        if len(found) == len(wanted):
            break
        for group in journal.read(round, RolloutGroup):
            if group.prompt.id in wanted:
                found[group.prompt.id] = group.prompt
    return found
