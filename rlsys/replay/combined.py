"""Several replays at once.

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
    """Each replay of the list takes what the one before it gives: the share of an offline set that stands last is its share of
    everything that the round trains on.
    """

    parts: list[dict[str, Any]] = field(default_factory=list)
    """Each the name of a replay under `name`, and its options."""

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
        """Of all parts."""
        return tuple(source for replay in self._replays for source in replay.sources)

    def check(self) -> None:
        """
        Raises:
            ConfigError: as that of a part.
        """
        for replay in self._replays:
            replay.check()

    def mix(self, examples: Iterator[Any], plan: RoundPlan, past: Past) -> Iterator[Any]:
        """The round's own examples, passed through all parts."""
        for replay in self._replays:
            examples = replay.mix(examples, plan, past)
        yield from examples
