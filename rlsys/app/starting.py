"""The actors of a command, built from its configuration: engines that answer, engines that judge, and the learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.app import plan as planning
from rlsys.machine import Machine
from rlsys.placement import Placement, share_starts
from rlsys.progress import Progress
from rlsys.records import Prompt
from rlsys.savepoints import Savepoints

if TYPE_CHECKING:  # Ray is imported when something is started
    from actors.stages import FeedbackStage, RolloutStage
    from learners.group import LearnerGroup


PROBES_AMONG = 64
"""Prompts at the beginning of a run that probes are chosen from."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Where a command runs, and what it shows there."""

    machine: Machine
    progress: Progress


def start_rollouts(
    config: Any,
    host: Host,
    model: Path,
    *,
    placements: Sequence[Placement] | None = None,
    savepoints: Savepoints | None = None,
    batch: int | None = None,
) -> RolloutStage:
    """Start the engines that answer.

    Args:
        model: Hugging Face folder of the policy.
        placements: one per worker; if `None`, the workers share all there is.
        batch: prompts per engine call, instead of the run's.
        savepoints: where the current weights are, if they will change; a worker that is replaced loads those.

    Raises:
        ResourceError: the workers do not fit.
        WorkerDied, EngineError: one did not start.
    """
    from actors.stages import RolloutStage

    if placements is None:
        role = planning.engine_role("rollout", config.rollout, _size(model))
        placements = planning.placements([role], host.machine)["rollout"]
    return RolloutStage(
        engine=config.rollout.engine,
        current=savepoints.current if savepoints else (lambda: (model, 0)),
        placements=placements,
        seed=config.seed,
        batch=batch or config.rollout.batch,
        held_out_batch=config.eval.batch,
        deadline_s=config.rollout.deadline_s,
        probe_prompts=probe_prompts(config) if savepoints else (),
        probe_file=savepoints.probes if savepoints else None,
    )


def probe_prompts(config: Any) -> list[Prompt]:
    """The prompts whose answers prove weight updates: the run's first, those with pictures before those without, so
    that the vision tower is proven too.
    """
    schedule = config.schedule.build()
    first = list(config.prompts.take(0, min(schedule.num_prompts, PROBES_AMONG)))
    return sorted(first, key=lambda prompt: not prompt.images)[: config.sync.num_probes]


def start_feedback(config: Any, model: Path | None, *, placements: Sequence[Placement]) -> FeedbackStage:
    """Start what judges; `model` and `placements` are of the judge's engine, if the feedback asks one."""
    from actors.stages import FeedbackStage

    return FeedbackStage(
        feedback=config.feedback,
        engine=config.critic.engine,
        model=None if model is None else str(model),
        placements=placements,
        batch=config.critic.batch,
        deadline_s=config.critic.deadline_s,
    )


def start_learner(
    config: Any,
    host: Host,
    model: Path,
    *,
    objective: Any,
    options: Any = None,
    placements: Sequence[Placement] | None = None,
) -> LearnerGroup:
    """Start the learner's ranks.

    Args:
        options: a `LearnerConfig`; the run's own if `None`.
        placements: one per rank; if `None`, the ranks share all there is.
    """
    from learners.group import LearnerGroup

    options = options or config.learner
    if placements is None:
        role = planning.learner_role(options, _size(model))
        placements = planning.placements([role], host.machine)["learner"]
    return LearnerGroup(options, objective, str(model), placements=placements, seed=config.seed)


def start_together(*starts: Callable[[], Any]) -> list[Any]:
    """Start several parts at once; if one fails, the others are ended before its error is raised."""
    with ThreadPoolExecutor(len(starts), thread_name_prefix="start") as pool:
        futures = [pool.submit(start) for start in starts]
    errors = [future.exception() for future in futures if future.exception()]
    if errors:
        for future in futures:
            if not future.exception():
                future.result().close()
        raise errors[0]
    return [future.result() for future in futures]


class Later:
    """A part that starts while others are already at work. Who first uses it waits for it, and is told if it failed."""

    def __init__(self, start: Callable[[], Any], *, after: Sequence[Later] = ()) -> None:
        """Begin to start, or wait for that until others have started; if one of them fails, this one has failed as well."""
        self._unwanted = False
        pool = ThreadPoolExecutor(1, thread_name_prefix="start")
        self._started = pool.submit(self._start, start, [other._started for other in after])
        pool.shutdown(wait=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._started.result(), name)

    def close(self) -> None:
        """End the part, when it has started; one that has not begun to does not begin any more."""
        self._unwanted = True
        if not self._started.exception():
            self._started.result().close()

    def _start(self, start: Callable[[], Any], before: Sequence[Future]) -> Any:
        for other in before:
            other.result()
        if self._unwanted:
            raise CancelledError
        return start()


def start_in_order(
    *wanted: tuple[Callable[[Sequence[Placement]], Any], str], placements: Mapping[str, Sequence[Placement]]
) -> list[Later]:
    """Start parts, those first that are needed first: at once, but for those whose actors would share cores meanwhile. Two
    that start on one core are there later than either would be alone.

    Args:
        wanted: what starts a part on the placements of its actors, and the name of their role.
        placements: by role; one that is not there has no actors.
    """
    begun: list[tuple[Later, Sequence[Placement]]] = []
    for start, role in wanted:
        own = placements.get(role, [])
        after = [part for part, others in begun if share_starts(own, others)]
        begun.append((Later(partial(start, own), after=after), own))
    return [part for part, _ in begun]


def _size(model: Path) -> planning.ModelSize:
    return planning.model_size(str(model), None)
