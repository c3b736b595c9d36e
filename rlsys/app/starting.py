"""Start of the actors of a command, as its configuration describes them: rollout engines, judge engines, and the learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.app import plan as planning
from rlsys.checkpoints.run import Checkpoints
from rlsys.placement import Placement, share_starts
from rlsys.placement.machine import Machine
from rlsys.records import Prompt
from rlsys.report.progress import Progress

if TYPE_CHECKING:  # Ray is imported only when something is started
    from actors.feedback import FeedbackStage
    from actors.roles import EngineRole
    from actors.stages import RolloutStage
    from learners.group import LearnerGroup


PROBES_AMONG = 64
"""Number of prompts at the beginning of a run from which the probes are chosen."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The machine that a command runs on, and the display of its progress."""

    machine: Machine
    progress: Progress


def start_rollouts(
    config: Any,
    context: Context,
    model: Path,
    *,
    placements: Sequence[Placement] | None = None,
    checkpoints: Checkpoints | None = None,
    roles: Mapping[str, Any] | None = None,
) -> RolloutStage:
    """Start the rollout engines.

    Args:
        config: configuration of the run.
        context: the machine and the display of progress.
        model: Hugging Face folder of the policy.
        placements: one per worker; if `None`, the workers share all resources.
        roles: engines besides the policy's, which a conversation may ask.
        checkpoints: where the current weights are, if they will change; a worker that replaces another loads them from there.

    Raises:
        ResourceError: the workers do not fit.
        WorkerDied, EngineError: a worker did not start.
    """
    from actors.stages import RolloutStage

    if placements is None:
        role = planning.engine_role("rollout", config.rollout, _size(model))
        placements = planning.placements([role], context.machine)["rollout"]
    return RolloutStage(
        engine=config.rollout.engine,
        current=checkpoints.current if checkpoints else (lambda: (model, 0)),
        placements=placements,
        seed=config.seed,
        batch=config.rollout.batch,
        held_out_batch=config.eval.batch,
        deadline_s=config.rollout.deadline_s,
        probe_prompts=probe_prompts(config) if checkpoints else (),
        probe_file=checkpoints.probes if checkpoints else None,
        conversation=config.conversation,
        roles=roles,
    )


def probe_prompts(config: Any) -> list[Prompt]:
    """The prompts whose responses verify weight updates: the first prompts of the run. Those with images come before those
    without, so that the vision tower is verified too.
    """
    schedule = config.schedule.build()
    first = list(config.prompts.take(0, min(schedule.num_prompts, PROBES_AMONG)))
    return sorted(first, key=lambda prompt: not prompt.images)[: config.sync.num_probes]


def start_role(config: Any, name: str, model: Path, placements: Sequence[Placement]) -> EngineRole:
    """Start the engines of a role."""
    from actors.roles import EngineRole

    role = config.engines[name]
    return EngineRole(
        name,
        engine=role.engine,
        model=model,
        placements=placements,
        raw_logits=config.raw_logits(name),
        deadline_s=role.deadline_s,
    )


def feedback_stage(config: Any, roles: Mapping[str, Any]) -> FeedbackStage:
    """Make the feedback stage, which judges the responses.

    Args:
        config: configuration of the run.
        roles: engines by role, `policy` among them.
    """
    from actors.feedback import FeedbackStage

    asked = [config.engines[name] for name in config.roles()]
    return FeedbackStage(
        feedback=config.feedback,
        roles=roles,
        own=[roles[name] for name in config.roles()],
        num_workers=sum(role.num_actors for role in asked) or config.rollout.num_actors,
        num_processes=config.engines["judge"].num_actors,
        batch=config.engines["judge"].batch,
        deadline_s=config.engines["judge"].deadline_s,
    )


def start_learner(
    config: Any,
    context: Context,
    model: Path,
    *,
    objective: Any,
    options: Any = None,
    placements: Sequence[Placement] | None = None,
) -> LearnerGroup:
    """Start the learner's ranks.

    Args:
        config: configuration of the run.
        context: the machine and the display of progress.
        model: Hugging Face folder of the weights to train.
        objective: the objective to train with.
        options: a `LearnerConfig`; the run's own if `None`.
        placements: one per rank; if `None`, the ranks share all resources.
    """
    from learners.group import LearnerGroup

    options = options or config.learner
    if placements is None:
        role = planning.learner_role(options, _size(model))
        placements = planning.placements([role], context.machine)["learner"]
    return LearnerGroup(options, objective, str(model), placements=placements, seed=config.seed)


def start_together(*starts: Callable[[], Any]) -> list[Any]:
    """Start several parts at once. If one of them fails, the others are stopped before its error is raised."""
    with ThreadPoolExecutor(len(starts), thread_name_prefix="start") as pool:
        futures = [pool.submit(start) for start in starts]
    errors = [future.exception() for future in futures if future.exception()]
    if errors:
        for future in futures:
            if not future.exception():
                future.result().close()
        raise errors[0]
    return [future.result() for future in futures]


class DeferredStart:
    """A part that starts in the background. The first use of the part waits until it has started, and raises the error if the
    start failed.
    """

    def __init__(self, start: Callable[[], Any], *, after: Sequence[DeferredStart] = ()) -> None:
        """Start now, or after the parts of `after` have started; if one of those fails, this start fails as well."""
        self._unwanted = False
        pool = ThreadPoolExecutor(1, thread_name_prefix="start")
        self._started = pool.submit(self._start, start, [other._started for other in after])
        pool.shutdown(wait=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._started.result(), name)

    def close(self) -> None:
        """Stop the part after it has started; if its start has not begun, it never begins."""
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
) -> list[DeferredStart]:
    """Start parts in the order in which they are needed. They start at the same time, except that parts whose actors share
    cores start one after the other: two parts that start on one core are both ready later than either would be alone.

    Args:
        wanted: pairs of a function that starts a part on the placements of its actors, and the name of their role.
        placements: placements by role; a role that is missing has no actors.
    """
    begun: list[tuple[DeferredStart, Sequence[Placement]]] = []
    for start, role in wanted:
        own = placements.get(role, [])
        after = [part for part, others in begun if share_starts(own, others)]
        begun.append((DeferredStart(partial(start, own), after=after), own))
    return [part for part, _ in begun]


def _size(model: Path) -> planning.ModelSize:
    return planning.model_size(str(model), None)
