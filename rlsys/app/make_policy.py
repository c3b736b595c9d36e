"""The starting policy of the scenes world: random weights, trained on descriptions and answers (objective `sft`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsys.app import supervised
from rlsys.app.starting import Context
from rlsys.worlds.scenes.policy import make_policy
from rlsys.worlds.scenes.source import demonstrations


def make(config: Any, context: Context, target: Path) -> None:
    """Train a policy on scenes of the `train` split; `target/policy` is then a Hugging Face folder."""
    recipe = config.sft
    random_weights = make_policy(target / "random", seed=config.seed)
    examples = demonstrations(recipe.num_examples, tasks=recipe.tasks, partner_rate=recipe.partner_rate)
    supervised.train(
        config,
        context,
        random_weights,
        examples,
        target,
        objective="sft",
        recipe=recipe,
        num_examples=recipe.num_examples,
    )
