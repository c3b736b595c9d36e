"""Engines by role: every question of a program (`rlsys.contracts.Asking`) goes to the engines of the role that it names."""

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
"""The generation of a question whose worker died in both attempts."""
Heard = Callable[[PartialResult], None]
"""Function that is called with every partial result, to count its time and to show its notes."""


class RoleEngines(Protocol):
    """The engines of one role."""

    def ask(self, frame: bytes, num_asks: int) -> Iterator[PartialResult | None]:
        """Yield partial results with the generations for the questions (`Ask`) of a frame, in order; `None` if the rest will
        not come."""


class EngineWorker:
    """A worker with an engine whose weights do not change."""

    def __init__(self, *, engine: Any, model: str, raw_logits: bool) -> None:
        """
        Args:
            engine: a plug-in of group `engine`.
            model: checkpoint that the engine loads.
            raw_logits: whether the engine returns raw logits as scores, as a judge needs them, and no logprobs.
        """
        self._engine = engine.open(model, raw_logits=raw_logits)

    def respond(self, frame: bytes, skip: int = 0) -> Iterator[PartialResult]:
        """Answer the questions of a frame; see `generations`."""
        yield from generations(self._engine, frame, skip)

    def close(self) -> None:
        """Free the device."""
        self._engine.close()


def generations(engine: Any, frame: bytes, skip: int) -> Iterator[PartialResult]:
    """Answer the questions of a frame with one engine call.

    Args:
        skip: number of leading generations that are not yielded. They are computed nevertheless, because the last digits of a
            generation depend on what the engine computes in the same batch.
    """
    asks = wire.decode_many(frame, Ask)
    ready = engine.stream([(ask.prompt, ask.sampling) for ask in asks])
    stamped = ([(replace(one, version=engine.version),) for one in some] for some in ready)
    yield from partial_results(stamped, skip=skip, notes=getattr(engine, "notes", None))


class EngineRole:
    """The workers of one role, each with an engine."""

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
            name: name of the role.
            engine: a plug-in of group `engine`.
            model: Hugging Face folder.
            placements: one placement per worker.
            raw_logits: see `EngineWorker`.
            deadline_s: time limit of the first partial result of a call, and between two partial results.

        Raises:
            ConfigError: `placements` is empty.
        """
        if not placements:
            raise ConfigError(f"engines.{name}.num_actors must be at least 1, got 0")
        self.counts = Counts(name)
        options = {"engine": engine, "model": str(model), "raw_logits": raw_logits}
        spec = Spec(name=name, worker=EngineWorker, options=options)
        self._pool = WorkerPool(spec, placements, deadline_s=deadline_s, on_death=self.counts.death)

    def ask(self, frame: bytes, num_asks: int) -> Iterator[PartialResult | None]:
        """Ask one of the workers; see `RoleEngines.ask`."""
        return self._pool.call("respond", (frame,), num_items=num_asks)

    def lost(self, round: int) -> float:
        """Number of workers that died since the previous call of this method; they are counted for `round`."""
        return self.counts.of(round, 1)["failed_workers"]

    def pids(self) -> list[int]:
        """Ids of the workers' processes that run on this machine."""
        return self._pool.pids()

    def close(self) -> None:
        """End the workers."""
        self._pool.close()


class Respondent:
    """Answers the waves of programs (`rlsys.asking.driver.advance`).

    A wave is one engine call per role, or several calls of `size` questions each. Thus the questions of one call never depend
    on which worker is free.
    """

    def __init__(self, roles: Mapping[str, RoleEngines], *, size: int = 0, num_workers: int = 1) -> None:
        """
        Args:
            roles: the engines by role.
            size: number of questions per engine call; 0 puts all questions of a wave to one role into one call.
            num_workers: number of workers. One call more than that, per wave and role, is in progress at once.
        """
        self._roles, self._size, self._num_workers = roles, size, num_workers

    def __call__(self, asks: Sequence[Ask], *, heard: Heard = lambda part: None) -> Iterator[list[Generation]]:
        """The generations for the questions of a wave, in order. Generations that are ready at the same time are one list.

        Raises:
            ConfigError: a role has no engine.
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
        # All roles work at the same time, each at its own pace.
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
