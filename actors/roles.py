"""Engines by role: what a program asks (`rlsys.contracts.Asking`) goes to the engines of the role that it names."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from actors.counts import Counts
from actors.partial import PartialResult, partial_results
from actors.pool import WorkerPool
from actors.remote import Spec
from rlsys import wire
from rlsys.common.streams import Stream
from rlsys.errors import ConfigError
from rlsys.placement import Placement
from rlsys.records import Ask, Generation

NOT_ANSWERED = Generation(prompt_token_ids=np.zeros(0, np.int32), completions=())
"""Stands for a question whose worker died twice."""
Heard = Callable[[PartialResult], None]
"""Told every partial result: how long it took, and what a person should know of it."""


class RoleEngines(Protocol):
    """The engines of one role."""

    def ask(self, frame: bytes, num_asks: int) -> Iterator[PartialResult | None]:
        """Generations for the questions of a frame, in order, part by part; `None` if the rest will not come."""


class EngineWorker:
    """Holds an engine whose weights stay."""

    def __init__(self, *, engine: Any, model: str, raw_logits: bool) -> None:
        """
        Args:
            engine: a plug-in of group `engine`.
            model: checkpoint to open.
            raw_logits: whether scores are read as raw logits.
        """
        self._engine = engine.open(model, raw_logits=raw_logits)

    def respond(self, frame: bytes, skip: int = 0) -> Iterator[PartialResult]:
        """See `generations`."""
        yield from generations(self._engine, frame, skip)

    def close(self) -> None:
        """Free the device."""
        self._engine.close()


def generations(engine: Any, frame: bytes, skip: int) -> Iterator[PartialResult]:
    """Answer the questions of a frame, all with one engine call.

    Args:
        skip: generations at the beginning that are not wanted. They are made none the less: the last digits of an answer
            depend on what is computed beside it.
    """
    asks = wire.decode_many(frame, Ask)
    ready = engine.stream([(ask.prompt, ask.sampling) for ask in asks])
    stamped = ([(replace(one, version=engine.version),) for one in some] for some in ready)
    yield from partial_results(stamped, skip=skip, notes=getattr(engine, "notes", None))


class EngineRole:
    """Workers with an engine each, for one role."""

    def __init__(
        self,
        name: str,
        *,
        engine: Any,
        model: str | Path,
        placements: Sequence[Placement],
        raw_logits: bool = False,
        deadline_s: float = 900.0,
    ) -> None:
        """Start the workers, one per placement.

        Args:
            engine: a plug-in of group `engine`.
            model: Hugging Face folder.
            deadline_s: for the first results of a call, and from each to the next.

        Raises:
            ConfigError: there is no placement.
        """
        if not placements:
            raise ConfigError(f"engines.{name}.num_actors must be at least 1, got 0")
        self.counts = Counts(name)
        options = {"engine": engine, "model": str(model), "raw_logits": raw_logits}
        spec = Spec(name=name, worker=EngineWorker, options=options)
        self._pool = WorkerPool(spec, placements, deadline_s=deadline_s, on_death=self.counts.death)

    def ask(self, frame: bytes, num_asks: int) -> Iterator[PartialResult | None]:
        """See `RoleEngines.ask`."""
        return self._pool.call("respond", (frame,), num_items=num_asks)

    def lost(self, round: int) -> float:
        """Workers that died since the last call, which is for this round."""
        return self.counts.of(round, 1)["failed_workers"]

    def pids(self) -> list[int]:
        """Processes of the workers that run on this machine."""
        return self._pool.pids()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


class Respondent:
    """Answers the waves of programs (`rlsys.asking.driver.advance`).

    One wave is one engine call per role, or several of `size` questions each: what is asked in one call never depends on
    which worker is free.
    """

    def __init__(self, roles: Mapping[str, RoleEngines], *, size: int = 0, num_workers: int = 1) -> None:
        """
        Args:
            roles: the engines by role.
            size: questions per engine call; 0 puts a role's questions of a wave into one call.
            num_workers: calls of one wave that may be in work at once.
        """
        self._roles, self._size, self._num_workers = roles, size, num_workers

    def __call__(self, asks: Sequence[Ask], *, heard: Heard = lambda part: None) -> Iterator[list[Generation]]:
        """Generations of a wave, in order; those that are ready at once are one list.

        Raises:
            ConfigError: there is no engine of a role.
        """
        by_role: dict[str, list[Ask]] = {}
        for ask in asks:
            by_role.setdefault(ask.role, []).append(ask)
        for role in by_role:
            if role not in self._roles:
                raise ConfigError(f"no engine has the role {role!r}; there are: {', '.join(self._roles) or 'none'}")
        if len(by_role) == 1:
            ((role, own),) = by_role.items()
            yield from self._of_role(role, own, heard)
            return
        # The roles work at once, each at its own pace.
        streams = {role: Stream(self._of_role(role, own, heard), ahead=len(own)) for role, own in by_role.items()}
        try:
            left = {role: (one for some in stream for one in some) for role, stream in streams.items()}
            yield [next(left[ask.role]) for ask in asks]
        finally:
            for stream in streams.values():
                stream.close()

    def _of_role(self, role: str, asks: list[Ask], heard: Heard) -> Iterator[list[Generation]]:
        size = self._size or len(asks)
        calls = (self._call(role, asks[start : start + size], heard) for start in range(0, len(asks), size))
        if size >= len(asks):
            yield from next(calls)
            return
        waiting: deque[Stream[list[Generation]]] = deque()
        try:
            waiting.extend(Stream(call, ahead=size) for call in islice(calls, self._num_workers + 1))
            while waiting:
                yield from waiting.popleft()
                waiting.extend(Stream(call, ahead=size) for call in islice(calls, 1))
        finally:
            for stream in waiting:
                stream.close()

    def _call(self, role: str, asks: list[Ask], heard: Heard) -> Iterator[list[Generation]]:
        left = len(asks)
        for part in self._roles[role].ask(wire.encode_many(asks), left):
            if part is None:
                yield [NOT_ANSWERED] * left
                return
            heard(part)
            left -= part.num_items
            yield part.records(Generation)
