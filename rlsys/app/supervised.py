"""Supervised training of a model of the scenes world with our own learner."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from learners.config import LearnerConfig
from rlsys import registry
from rlsys.app.starting import Context, start_learner
from rlsys.training import TrainingConfig


def train(
    config: Any,
    context: Context,
    model: Path,
    examples: Iterable[Any],
    target: Path,
    *,
    objective: str,
    recipe: TrainingConfig,
    num_examples: int,
) -> None:
    """Train from the weights in `model`; `target/policy` is then a Hugging Face folder.

    One rank trains everything, so that a model is the same whatever run it is made for. The run decides the device only.

    Args:
        objective: name of a plug-in; also shown as the name of the work.
        num_examples: length of `examples`.
    """
    from learners.plan import FitPlan

    learner = start_learner(
        config,
        context,
        model,
        objective=registry.objective.make(objective),
        options=LearnerConfig(batch_size=recipe.batch_size, betas=recipe.betas, gpus=config.learner.gpus),
    )
    try:
        plan = FitPlan.of_recipe(recipe, seed=config.seed, num_examples=num_examples)
        learner.train(context.progress.track(objective, examples, num_examples), plan)
        learner.save(str(target))
    finally:
        learner.close()
