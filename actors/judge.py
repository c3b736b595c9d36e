"""Verdicts on answers, from a feedback plug-in and the judge's engine that it asks. No Ray in here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from actors.partial import PartialResult, partial_results, regroup
from rlsys import wire
from rlsys.contracts import Feedback
from rlsys.records import RolloutGroup, Verdict


class JudgeWorker:
    """Holds a feedback plug-in and the judge's engine."""

    def __init__(self, *, feedback: Feedback, engine: Any, model: str) -> None:
        """
        Args:
            engine: a plug-in of group `engine`.
            model: the judge's checkpoint.
        """
        self._feedback = feedback
        self._engine = engine.open(model, raw_logits=True)

    def judge(self, frame: bytes, skip: int = 0) -> Iterator[PartialResult]:
        """Judge the rollout groups of a frame, all with one engine call.

        Args:
            skip: groups at the beginning whose verdicts are not wanted.

        Yields:
            Verdicts, one per rollout, group after group, each group's when its last critique is there.
        """
        yield from partial_results(self._verdicts(frame), skip=skip, notes=getattr(self._engine, "notes", None))

    def _verdicts(self, frame: bytes) -> Iterator[list[tuple[Verdict, ...]]]:
        groups = wire.decode_many(frame, RolloutGroup)
        requests = [self._feedback.requests(group) for group in groups]
        asked = [request for group in requests for request in group]
        generations = self._engine.stream(asked) if asked else []
        left = iter(groups)
        for whole in regroup(generations, map(len, requests)):
            yield [self._feedback.verdicts(group, found) for found, group in zip(whole, left, strict=False)]

    def close(self) -> None:
        """Free the device."""
        self._engine.close()
