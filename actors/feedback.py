"""The stage that judges: programs of a feedback plug-in, advanced on the engines of the roles that they ask.

What is asked in one engine call depends on the groups, `batch` and the sizes of images only, so that the result does not
depend on how many workers there are, which of them did what, or whether one was replaced.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from actors.chunks import chunks
from actors.counts import Counts
from actors.partial import PartialResult
from actors.roles import EngineRole, Respondent, RoleEngines
from rlsys import registry
from rlsys.asking.driver import advance
from rlsys.common.streams import Stream
from rlsys.contracts import Feedback
from rlsys.errors import ConfigError
from rlsys.records import RolloutGroup, ScoredGroup, Verdict


class FeedbackStage:
    """`rlsys.contracts.FeedbackStage`."""

    def __init__(
        self,
        *,
        feedback: Feedback,
        roles: Mapping[str, RoleEngines] | None = None,
        own: Sequence[EngineRole] = (),
        num_workers: int = 1,
        batch: int = 8,
    ) -> None:
        """
        Args:
            roles: the engines by role; the stage ends none of them.
            own: those of them whose processes and deaths are counted here, because no other stage counts them.
            num_workers: of all roles that are asked; one batch more than that is in work at once.
            batch: groups whose programs are advanced together, with one engine call per wave and role.

        Raises:
            ConfigError: `batch` is not positive.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, got {batch}")
        self._feedback, self._batch, self._num_workers = feedback, batch, num_workers
        self._own = own
        self._respondent = Respondent(roles or {})
        self._counts = Counts("feedback")

    def stream(self, groups: Iterable[RolloutGroup], options: Mapping[str, Any] | None = None) -> Iterator[ScoredGroup]:
        """One scored group per group, in order.

        Args:
            options: of the feedback, that this round sets (`RoundPlan.options`).
        """
        feedback = registry.feedback.configured(self._feedback, options or {})
        if getattr(feedback, "seed", 0) is None:
            feedback.seed = getattr(self._feedback, "seed", None)
        batches = Stream(self._begun(groups, feedback), ahead=self._num_workers)
        try:
            for batch, found in batches:
                left = iter(batch)
                for some in found:
                    for verdicts, group in zip(some, left, strict=False):
                        yield ScoredGroup(group=group, verdicts=verdicts)
        finally:
            batches.close()

    def count(self, round: int) -> dict[str, float]:
        """`seconds` (busy, mean over workers) and `failed_workers` of a round."""
        found = self._counts.of(round, self._num_workers)
        found["failed_workers"] += sum(role.lost(round) for role in self._own)
        return found

    def pids(self) -> list[int]:
        """Processes of the engines of its own that run on this machine."""
        return [pid for role in self._own for pid in role.pids()]

    def _begun(
        self, groups: Iterable[RolloutGroup], feedback: Feedback
    ) -> Iterator[tuple[Sequence[RolloutGroup], Stream[list[tuple[Verdict, ...]]]]]:
        """Batches whose programs are being advanced, each in a thread of its own."""
        for batch in chunks(groups, self._batch, prompt=lambda group: group.prompt):
            yield batch, Stream(self._judged(batch, feedback), ahead=len(batch))

    def _judged(self, batch: Sequence[RolloutGroup], feedback: Feedback) -> Iterator[list[tuple[Verdict, ...]]]:
        round = batch[0].round
        answer = partial(self._respondent, heard=lambda part: self._heard(part, round))
        if feedback.roles:
            yield from advance(map(feedback.judge, batch), answer)
            return
        for group in batch:
            begun = time.monotonic()
            found = list(advance([feedback.judge(group)], answer))
            self._counts.seconds[round] += time.monotonic() - begun
            yield from found

    def _heard(self, part: PartialResult, round: int) -> None:
        self._counts.round = round
        self._counts.seconds[round] += part.seconds
        self._counts.tell(part.notes)
