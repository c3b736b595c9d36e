"""The stage that judges: it advances the programs of a feedback plug-in, and sends their questions to the engines of the roles.

The questions of one engine call depend only on the groups, on `batch` and on the sizes of images. Therefore the result does not
depend on the number of workers, on which worker answered which call, or on whether a worker was replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from actors.chunks import chunks
from actors.counts import Counts
from actors.feedback_processes import FeedbackProcesses
from actors.partial import PartialResult
from actors.roles import EngineRole, Respondent, RoleEngines
from rlsys import registry
from rlsys.asking.driver import advance
from rlsys.common.streams import Stream
from rlsys.contracts import Feedback
from rlsys.errors import ConfigError
from rlsys.records import RolloutGroup, ScoredGroup, Verdict

AHEAD_OF_A_PROCESS = 2
"""Number of groups that wait for each feedback process."""


class FeedbackStage:
    """The implementation of `rlsys.contracts.FeedbackStage`."""

    def __init__(
        self,
        *,
        feedback: Feedback,
        roles: Mapping[str, RoleEngines] | None = None,
        own: Sequence[EngineRole] = (),
        num_workers: int = 1,
        num_processes: int = 1,
        batch: int = 8,
        deadline_s: float = 900.0,
    ) -> None:
        """
        Args:
            feedback: the feedback plug-in.
            roles: the engines by role; the stage does not close them.
            own: the engines whose processes and deaths this stage counts, because no other stage counts them.
            num_workers: number of workers of all roles that the feedback asks; one batch more than that is in progress at once.
            num_processes: number of processes for a feedback that asks no engine.
            deadline_s: time limit of the verdicts of one group, for a feedback that asks no engine.
            batch: number of groups whose programs are advanced together, with one engine call per wave and role.

        Raises:
            ConfigError: `batch` is not positive.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, got {batch}")
        self._feedback, self._batch, self._num_workers = feedback, batch, num_workers
        self._own = own
        self._respondent = Respondent(roles or {})
        self._counts = Counts("feedback")
        self._num_processes, self._deadline_s = num_processes, deadline_s
        self._processes: FeedbackProcesses | None = None
        if not feedback.roles:
            self._num_workers = num_processes
            self._start_processes(feedback)

    def stream(self, groups: Iterable[RolloutGroup], options: Mapping[str, Any] | None = None) -> Iterator[ScoredGroup]:
        """One scored group per group, in order.

        Args:
            options: fields of the feedback plug-in that this round overrides (`RoundPlan.options`).
        """
        feedback = registry.feedback.configured(self._feedback, options or {})
        if getattr(feedback, "seed", 0) is None:
            feedback.seed = getattr(self._feedback, "seed", None)
        if not feedback.roles:
            yield from self._computed(groups, feedback)
            return
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
        """Ids of the feedback processes, and of the own engines' processes that run on this machine."""
        computing = self._processes.pids() if self._processes else []
        return [*computing, *(pid for role in self._own for pid in role.pids())]

    def close(self) -> None:
        """End the feedback processes. The engines of the roles are closed by the code that started them."""
        if self._processes is not None:
            self._processes.close()

    def _begun(
        self, groups: Iterable[RolloutGroup], feedback: Feedback
    ) -> Iterator[tuple[Sequence[RolloutGroup], Stream[list[tuple[Verdict, ...]]]]]:
        """The batches and the streams of their verdicts; the programs of each batch are advanced in a thread of their own."""
        for batch in chunks(groups, self._batch, prompt=lambda group: group.prompt):
            yield batch, Stream(self._judged(batch, feedback), ahead=len(batch))

    def _judged(self, batch: Sequence[RolloutGroup], feedback: Feedback) -> Iterator[list[tuple[Verdict, ...]]]:
        round = batch[0].round
        answer = partial(self._respondent, heard=lambda part: self._heard(part, round))
        yield from advance(map(feedback.judge, batch), answer)

    def _computed(self, groups: Iterable[RolloutGroup], feedback: Feedback) -> Iterator[ScoredGroup]:
        """Judge groups without an engine, in separate processes, because the computation must not block the driver's
        threads."""
        if self._processes is None:
            self._start_processes(feedback)
        begun = ((group, self._processes.judge(group, feedback)) for group in groups)
        judged = Stream(begun, ahead=AHEAD_OF_A_PROCESS * self._num_processes)
        try:
            for group, future in judged:
                self._counts.round = group.round
                seconds, verdicts = future.result()
                self._counts.seconds[group.round] += seconds
                yield ScoredGroup(group=group, verdicts=verdicts)
        finally:
            judged.close()

    def _start_processes(self, feedback: Feedback) -> None:
        self._processes = FeedbackProcesses(
            feedback, number=self._num_processes, deadline_s=self._deadline_s, on_death=self._counts.death
        )

    def _heard(self, part: PartialResult, round: int) -> None:
        self._counts.round = round
        self._counts.seconds[round] += part.seconds
        self._counts.tell(part.notes)
