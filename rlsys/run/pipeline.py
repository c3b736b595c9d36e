"""The rounds in flight: their responses are sampled and judged in threads of their own while the loop trains."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from rlsys import registry
from rlsys.common.streams import Stream
from rlsys.journal import Past
from rlsys.records import RolloutGroup, RoundPlan
from rlsys.run.components import RunComponents
from rlsys.run.recorder import RoundRecorder

AHEAD = 64
"""Number of groups that may wait between two stages while their round is being trained."""


@dataclass(frozen=True, kw_only=True)
class RoundInFlight:
    """A round whose generation has begun."""

    plan: RoundPlan
    recorder: RoundRecorder
    groups: Stream[RolloutGroup]
    scored: Stream
    examples: Iterator
    """The examples that the learner trains on: the round's own examples and those that the replay adds."""

    def close(self) -> None:
        """Let the producers of the round's streams end."""
        self.groups.close()
        self.scored.close()


class Pipeline:
    """The rounds in flight, in the order in which they are trained.

    with Pipeline(components, first) as pipeline:
        pipeline.launch(first)                     # also launches the later rounds that may run ahead
        train(pipeline.next.examples)
        pipeline.trained()                         # removes that round; no round is being sampled or judged any more
        with pipeline.launching(first + 1):        # the engines sample the next round while their weights are saved
            commit_and_report()
    """

    def __init__(self, components: RunComponents, first: int) -> None:
        self._components = components
        self._rounds: deque[RoundInFlight] = deque()
        self._unlaunched = first
        self._replayed: dict[int, Mapping[str, int]] = {}
        """For every round that was launched, the number of replayed examples by source."""
        self._committed: Future[None] = Future()
        self._committed.set_result(None)
        self._stack = ExitStack()

    def __enter__(self) -> Pipeline:
        self._stack.callback(self._components.checkpoints.close)
        self._sampling, self._judging, self.saving = (
            self._stack.enter_context(ThreadPoolExecutor(1, name)) for name in ("sampling", "judging", "saving")
        )
        self._stack.callback(self._close)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def next(self) -> RoundInFlight:
        """The round that is trained now or next."""
        return self._rounds[0]

    def launch(self, round: int) -> None:
        """Launch `round`, which is trained next, and all later rounds that may be sampled before it is trained. Rounds that are
        already in flight are left alone."""
        schedule = self._components.schedule
        while self._unlaunched < schedule.num_rounds:
            plan = schedule.plan(self._unlaunched)
            if plan.round - round > plan.lag:
                return
            self._rounds.append(self._start(plan))
            self._unlaunched += 1

    def trained(self) -> None:
        """Remove the round that was trained, and wait for the responses and verdicts of the later rounds in flight.

        The wait is necessary because the engines change their version only between the responses of two rounds, and because a
        judge that uses the policy's weights must use the same weights for all responses of a round. The wait always ends: the
        streams of a round that runs ahead can hold the whole round.

        Raises:
            Exception: the error of a stage of a later round. Nothing may be published then: a resumed run would sample that
                round with weights of another version than the plan prescribes.
        """
        self._rounds.popleft()
        for later in self._rounds:
            later.groups.wait()
            later.scored.wait()

    @contextmanager
    def launching(self, round: int | None) -> Iterator[None]:
        """Launch `round` (`None`: launch nothing). Inside the `with` block, the caller writes the checkpoint and the report of
        the round before it.

        The journals of the new rounds are sealed only after the block. Until then a kill would take the run back to older
        weights, which are then trained again; responses of the lost weights must not be reused as responses of the new ones.
        """
        self._committed = Future()
        if round is not None:
            self.launch(round)
        yield
        self._committed.set_result(None)

    def _start(self, plan: RoundPlan) -> RoundInFlight:
        """Start to sample and judge a round's responses, after those of the rounds that were launched before.

        The number of groups that wait between the stages is bounded: by `AHEAD` if the learner consumes them at the same time,
        and by the size of the round if it runs ahead, because then nobody consumes its groups before it is trained.
        """
        components = self._components
        build = registry.examples.configured(components.builder, plan.options.get("examples", {}))
        replay = registry.replay.configured(components.replay, plan.options.get("replay", {}))
        plan = replace(plan, brings_others=bool(replay.sources))
        recorder = RoundRecorder(plan, components, committed=self._committed)
        self._replayed[plan.round] = recorder.replayed
        past = Past(journal=components.journal, round=plan.round, kind=build.produces, counts=self._replayed)
        bound = AHEAD if plan.lag == 0 else plan.num_prompts
        groups = Stream(recorder.groups(), ahead=bound, executor=self._sampling)
        scored = Stream(recorder.scored(groups), ahead=bound, executor=self._judging)
        mixed = replay.mix(recorder.examples(scored, build), plan, past)
        return RoundInFlight(
            plan=plan,
            recorder=recorder,
            groups=groups,
            scored=scored,
            examples=recorder.trained(mixed),
        )

    def _close(self) -> None:
        """Close all rounds in flight, including one whose training failed, so that no stage waits forever."""
        self._committed.cancel()
        for in_flight in self._rounds:
            in_flight.close()
