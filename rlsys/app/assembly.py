"""Assembly of a run: this module starts the run components and hands each its part of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from rlsys.app import plan as planning
from rlsys.app.evaluate import evaluator
from rlsys.app.starting import Context, feedback_stage, start_in_order, start_learner, start_role, start_rollouts
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
    models: Mapping[str, Path],
    gate: MetricGate,
    good: Path | None = None,
) -> Iterator[tuple[RunComponents, Callable[[], dict[str, Interval]]]]:
    """Start all run components; stop them when the `with` block ends, for whatever reason.

    Args:
        config: configuration of the run.
        context: the machine and the display of progress.
        directory: the run's folder.
        schedule: the schedule of the rounds to run.
        models: Hugging Face folders by role; `policy` is the policy's.
        gate: the gate that decides whether a round's weights are accepted.
        good: checkpoint that the run continues from; `None` for a new run.

    Returns:
        The run components, and a function that measures the engines' current weights.
    """
    policy = models["policy"]
    roles = planning.roles(config, models)
    placements = planning.placements(roles, context.machine)
    checkpoints = Checkpoints(
        directory / "checkpoints",
        initial_policy=policy,
        good=good,
        keep=config.output.keep_checkpoints,
        fixed_state={"seed": config.seed, "schedule": asdict(config.schedule)},
    )
    with ExitStack() as stack:
        own: dict[str, Any] = {}
        # The parts start in the order in which a round needs them; the first responses are sampled while the other parts start.
        started = start_in_order(
            (
                lambda mine: start_rollouts(
                    config, context, policy, placements=mine, checkpoints=checkpoints, roles=own
                ),
                "rollout",
            ),
            *((partial(start_role, config, name, models[name]), name) for name in config.roles()),
            (
                lambda mine: start_learner(config, context, policy, objective=config.objective, placements=mine),
                "learner",
            ),
            placements=placements,
        )
        for part in started:
            stack.callback(part.close)
        rollouts, *others, learner = started
        own.update(zip(config.roles(), others, strict=True))
        own.update(dict.fromkeys(config.roles_of_policy(), rollouts))
        feedback = feedback_stage(config, own)
        stack.callback(feedback.close)
        if good:
            learner.load(str(good))
        weights = WeightSync(
            learner=learner,
            rollouts=rollouts,
            transport=config.transport,
            tolerance=config.sync.tolerance_at(config.learner.precision),
            deadline_s=config.sync.deadline_s,
        )
        measure = evaluator(config, own, context.progress, directory=directory)
        every = config.eval.every

        def evaluate(round: int, *, ends: bool = False) -> dict[str, Interval]:
            due = every and (ends or (round + 1) % every == 0 or round + 1 == schedule.num_rounds)
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
    """Everything besides its plan that determines a round's responses (`RunComponents.fingerprint`). The policy is named as it
    was configured, because the same policy may have another path on another machine. The source of prompts is named by its
    options; `RoundRecorder` compares the prompts themselves.
    """
    return f"policy {config.policy.model}, seed {config.seed}, {config.prompts}"
