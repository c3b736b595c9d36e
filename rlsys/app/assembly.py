"""A run's parts put together: what of the configuration goes where, and what is started."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlsys.app import plan as planning
from rlsys.app.evaluate import evaluator
from rlsys.app.starting import Context, start_feedback, start_in_order, start_learner, start_rollouts
from rlsys.checkpoints.run import Checkpoints
from rlsys.journal import Journal
from rlsys.records import Interval
from rlsys.run.components import RunComponents
from rlsys.run.sync import WeightSync
from rlsys.schedules.gate import MetricGate
from rlsys.schedules.phases import Schedule


@contextmanager
def assembled(
    config: Any,
    context: Context,
    directory: Path,
    *,
    schedule: Schedule,
    policy: Path,
    critic: Path | None,
    gate: MetricGate,
    good: Path | None = None,
) -> Iterator[tuple[RunComponents, Callable[[], dict[str, Interval]]]]:
    """Start everything that a run is made of; stop it at the end, however that comes.

    Args:
        directory: the run's folder.
        policy, critic: Hugging Face folders.
        good: checkpoint that the run goes on from; `None` if it begins.

    Returns:
        The parts, and a function that measures the engines' current weights.
    """
    roles = planning.roles(
        config,
        policy=planning.model_size(str(policy), config.policy.num_parameters_b),
        critic=planning.model_size(str(critic), config.critic.num_parameters_b),
    )
    placements = planning.placements(roles, context.machine)
    checkpoints = Checkpoints(
        directory / "checkpoints",
        initial_policy=policy,
        good=good,
        keep=config.output.keep_checkpoints,
        fixed_state={"seed": config.seed, "schedule": asdict(config.schedule)},
    )
    with ExitStack() as stack:
        # In the order in which a round needs them; the first answers are sampled while the others still start.
        rollouts, feedback, learner = parts = start_in_order(
            (lambda own: start_rollouts(config, context, policy, placements=own, checkpoints=checkpoints), "rollout"),
            (lambda own: start_feedback(config, critic, placements=own), "critic"),
            (lambda own: start_learner(config, context, policy, objective=config.objective, placements=own), "learner"),
            placements=placements,
        )
        for part in parts:
            stack.callback(part.close)
        if good:
            learner.load(str(good))
        weights = WeightSync(
            learner=learner,
            rollouts=rollouts,
            transport=config.transport,
            tolerance=config.sync.tolerance_at(config.learner.precision),
            deadline_s=config.sync.deadline_s,
        )
        measure = evaluator(config, rollouts, context.progress)
        every = config.eval.every

        def evaluate(round: int) -> dict[str, Interval]:
            due = every and ((round + 1) % every == 0 or round + 1 == schedule.num_rounds)
            return measure() if due else {}

        yield (
            RunComponents(
                schedule=schedule,
                prompts=config.prompts,
                fingerprint=fingerprint(config),
                rollouts=rollouts,
                feedback=feedback,
                builder=config.examples,
                replay=config.replay,
                learner=learner,
                weights=weights,
                evaluate=evaluate,
                gate=gate,
                journal=Journal(directory / "journal"),
                checkpoints=checkpoints,
                tracker=context.progress,
            ),
            measure,
        )


def fingerprint(config: Any) -> str:
    """What decides a round's responses beside its plan (`RunComponents.fingerprint`). The policy is named as it was
    configured: on another machine the same one may lie elsewhere."""
    return f"policy {config.policy.model}, seed {config.seed}, {config.prompts}"
