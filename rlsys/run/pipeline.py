"""Rounds whose answers are being made and judged, in threads of their own, while the loop trains."""

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
"""Groups that may wait between two stages while their round is being trained."""


@dataclass(frozen=True, kw_only=True)
class RoundInFlight:
    """A round whose generation has begun."""

    plan: RoundPlan
    recorder: RoundRecorder
    groups: Stream[RolloutGroup]
    scored: Stream
    examples: Iterator
    """What the learner is given: the round's own examples, and those that its replay puts among them."""

    def close(self) -> None:
        self.groups.close()
        self.scored.close()


class Pipeline:
    """Rounds in flight, the next to train first.

    with Pipeline(components, first) as pipeline:
        pipeline.launch(first)                     # and as many rounds after it as may run ahead
        train(pipeline.next.examples)
        pipeline.trained()                         # that round is out; none is being answered or judged any more
        with pipeline.launching(first + 1):        # the engines go on while their weights are put on disk
            commit_and_report()
    """

    def __init__(self, components: RunComponents, first: int) -> None:
        self._components = components
        self._rounds: deque[RoundInFlight] = deque()
        self._unlaunched = first
        self._replayed: dict[int, Mapping[str, int]] = {}
        """For every round that is done or in hand, the examples of each source that it was given."""
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
        """The round to train next, or in hand."""
        return self._rounds[0]

    def launch(self, round: int) -> None:
        """Launch `round`, the next to train, and those that may be answered before it is trained, where they are not yet."""
        schedule = self._components.schedule
        while self._unlaunched < schedule.num_rounds:
            plan = schedule.plan(self._unlaunched)
            if plan.round - round > plan.lag:
                return
            self._rounds.append(self._launched(plan))
            self._unlaunched += 1

    def trained(self) -> None:
        """The next round is trained; wait for the answers of those after it and for their verdicts, because the engines change
        version only between two rounds' answers, and a judge that asks the policy's weights must have the same ones for all
        answers of a round. It is never a wait for ever: the streams of a round that runs ahead hold all of it.

        Raises:
            Exception: what their stages raised. Nothing may be published then: the resumed run would answer their prompts
                with weights that they were not to come from.
        """
        self._rounds.popleft()
        for later in self._rounds:
            later.groups.wait()
            later.scored.wait()

    @contextmanager
    def launching(self, round: int | None) -> Iterator[None]:
        """Launch `round` (`None`: nothing more) while the round before it is put on disk, checkpoint and report, inside the
        block.

        Until both are there a kill would take the run back to older weights, and answers of these must not pass for those of
        weights trained again: the new rounds' journals are not sealed before.
        """
        self._committed = Future()
        if round is not None:
            self.launch(round)
        yield
        self._committed.set_result(None)

    def _launched(self, plan: RoundPlan) -> RoundInFlight:
        """Start answering and judging a round's prompts, after those of rounds that were launched before.

        What waits between the stages is bounded: by `AHEAD` groups where the learner consumes meanwhile, by the round's own
        size where it runs ahead (nobody consumes it before its turn).
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
        """Also of the round in hand, if its training failed: its stages must not wait for ever."""
        self._committed.cancel()
        for launched in self._rounds:
            launched.close()
