"""Verdicts on answers, from a feedback plug-in and the engine it asks. No Ray in here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rlsys import wire
from rlsys.contracts import Feedback
from rlsys.records import RolloutGroup, Verdict


class CriticWorker:
    """Holds a feedback plug-in and, if that asks a judge, the judge's engine."""

    def __init__(self, *, feedback: Feedback, engine: Any = None, model: str | None = None) -> None:
        """
        Args:
            engine: a plug-in of group `engine`; not looked at if the feedback needs none.
            model: the judge's checkpoint.
        """
        self._feedback = feedback
        self._engine = engine.open(model, raw_logits=True) if feedback.needs_engine else None

    def judge(self, frame: bytes) -> tuple[bytes, float]:
        """Judge the rollout groups of a frame, all with one engine call.

        Returns:
            A frame of verdicts, one per rollout, group after group; and the busy seconds.
        """
        started = time.monotonic()
        verdicts = self.verdicts(wire.decode_many(frame, RolloutGroup))
        return wire.encode_many([verdict for group in verdicts for verdict in group]), time.monotonic() - started

    def verdicts(self, groups: Sequence[RolloutGroup]) -> list[tuple[Verdict, ...]]:
        """One verdict per rollout for every group."""
        requests = [self._feedback.requests(group) for group in groups]
        asked = [request for group in requests for request in group]
        answered = iter(self._engine.generate(asked) if asked else [])
        return [
            self._feedback.verdicts(group, [next(answered) for _ in of_group])
            for group, of_group in zip(groups, requests, strict=True)
        ]

    def close(self) -> None:
        """Free the device."""
        if self._engine is not None:
            self._engine.close()
