"""The two services that a stage gets from the stack: a model's responses to prompts, and training by the learner."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from learners.config import LearnerConfig
from rlsys.app import plan as planning
from rlsys.app.starting import Context, start_learner
from rlsys.errors import ConfigError
from rlsys.records import Prompt, RolloutGroup
from rlsys.schedules.phases import Phase
from rlsys.seeding import generator
from rlsys.stages.base import MODEL
from rlsys.stages.recipe import Recipe

RESPONDING_ROUND = -2
"""Round number of responses that examples are made of. Rounds of a run count from 0; evaluation uses -1."""
CURVE = "training.jsonl"
"""File beside a model that holds the loss and the learning rate of every step."""


def respond(
    config: Any,
    context: Context,
    model: Path,
    prompts: Sequence[Prompt],
    *,
    engine: Any,
    batch: int,
    num_candidates: int,
    max_tokens: int,
    label: str,
) -> Iterator[RolloutGroup]:
    """See `rlsys.stages.base.StageTools.respond`. The run's configuration decides the number of actors and devices, which does
    not change the responses.

    Args:
        label: name of the work in the display of progress.
    """
    from actors.stages import RolloutStage

    role = replace(config.rollout, engine=engine, gpus=min(config.rollout.gpus, engine.receivers))
    planned = planning.engine_role("rollout", role, planning.model_size(str(model), None))
    phase = Phase(num_prompts=len(prompts), num_candidates=num_candidates, max_tokens=max_tokens)
    stage = RolloutStage(
        engine=engine,
        current=lambda: (model, 0),
        placements=planning.placements([planned], context.machine)["rollout"],
        seed=config.seed,
        batch=batch,
        held_out_batch=batch,
        deadline_s=role.deadline_s,
    )
    try:
        groups = stage.stream(prompts, phase.plan(0, RESPONDING_ROUND))
        yield from context.progress.track(f"{label}: responses", groups, len(prompts))
    finally:
        stage.close()


def train(
    config: Any,
    context: Context,
    model: Path,
    examples: Sequence[Any],
    target: Path,
    *,
    objective: Any,
    recipe: Recipe,
    learner: Mapping[str, Any] | None,
    label: str,
) -> None:
    """See `rlsys.stages.base.StageTools.train`. The curve is written during the training.

    Raises:
        ConfigError: there are no examples.
    """
    from learners.plan import FitPlan

    if not len(examples):
        raise ConfigError(f"{label}: there are no examples to train on")
    options = replace(learner_options(config, learner), batch_size=recipe.batch_size)
    order = range(len(examples))
    if recipe.shuffle:
        order = generator(config.seed, "shuffle").permutation(len(examples)).tolist()
    plan = FitPlan.of_recipe(recipe, seed=config.seed, num_examples=len(examples))
    group = start_learner(config, context, model, objective=objective, options=options)
    try:
        with open(target / CURVE, "w") as lines:

            def note(step: int, loss: float) -> None:
                lines.write(json.dumps({"step": step, "loss": loss, "lr": plan.lr_at(step)}) + "\n")
                lines.flush()

            ordered = (examples[index] for index in order)
            group.train(context.progress.track(label, ordered, len(examples)), plan, on_step=note)
        group.save(str(target))
    finally:
        group.close()
    (target / "policy").rename(target / MODEL)
    shutil.rmtree(target / "optimizer", ignore_errors=True)  # a stage's training is never resumed


def learner_options(config: Any, own: Mapping[str, Any] | None) -> LearnerConfig:
    """The learner of a stage: the run's learner, or, if the stage has its own options, a learner with those options on the
    run's device.

    Raises:
        ConfigError: the learner has no such option, or refuses its value.
    """
    return config.learner if own is None else LearnerConfig.of(own, gpus=config.learner.gpus)


_DECIDING = (
    *(
        "num_ranks",
        "zero_stage",
        "precision",
        "micro_batch_tokens",
        "path",
        "grad_clip",
        "weight_decay",
        "betas",
        "freeze",
    ),
    "lora",
)
"""Options of the learner that are part of a model's key even where nobody sets them, because they determine weights."""
_WITHOUT_EFFECT = (
    *("cores", "gpus", "deadline_s", "image_cache_mib", "reference_checks", "reference_tolerance", "kl_responses"),
    *("activation_checkpointing", "batch_size"),
)
"""Options that change no weight, and `batch_size`, which the recipe decides."""


def deciding_options(config: Any, own: Mapping[str, Any] | None) -> dict[str, Any]:
    """The learner's options that determine weights, as JSON values. A newly introduced option is left out while it is not set,
    so that existing models need not be made again for it.
    """
    options, defaults = asdict(learner_options(config, own)), asdict(LearnerConfig())
    return {
        name: value
        for name, value in options.items()
        if name in _DECIDING or (name not in _WITHOUT_EFFECT and value != defaults[name])
    }
