"""Combines several replays. An example of its use:

replay=combined 'replay.parts=[{name: accumulated}, {name: offline_pairs, schema: rlhf_v, path: data/rlhf_v, share: 0.2}]'
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.journal import Past
from rlsys.records import RoundPlan


@registry.replay("combined")
@dataclass(kw_only=True)
class Combined:
    """Applies the replays of the list one after the other: each mixes its examples into the output of the one before it.

    Therefore the `share` of an offline set that is last in the list is its share of everything that the round trains on.
    """

    parts: list[dict[str, Any]] = field(default_factory=list)
    """The replays. Each entry has the name of a replay under `name`, and the options of that replay."""

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts):
            if "name" not in part:
                raise ConfigError(
                    f"replay.parts.{number} must name a replay, such as {{name: accumulated}}, got {part}"
                )
        self._replays = [registry.replay.configured(None, part) for part in self.parts]
        for source in self.sources:
            if self.sources.count(source) > 1:
                raise ConfigError(f"replay.parts: more than one brings {source!r}; give an offline set another label")
        kinds = {replay.produces for replay in self._replays} - {None}
        if len(kinds) > 1:
            names = " and ".join(sorted(kind.__name__ for kind in kinds))
            raise ConfigError(f"replay.parts bring {names} records; a round trains on one class")
        self.produces = next(iter(kinds), None)

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of all parts."""
        return tuple(source for replay in self._replays for source in replay.sources)

    def check(self) -> None:
        """Check all parts.

        Raises:
            ConfigError: the check of a part raised it.
        """
        for replay in self._replays:
            replay.check()

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples, mixed with those of all parts."""
        for replay in self._replays:
            examples = replay.mix(examples, plan, past)
        yield from examples
