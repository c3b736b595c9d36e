"""`rlsys sft`: make the starting policy of the scenes world with our own learner (objective `sft`)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rlsys import registry
from rlsys.app.parts import Host, start_learner
from rlsys.scenes.policy import make_policy
from rlsys.scenes.source import demonstrations


def make(config: Any, host: Host, target: Path) -> None:
    """Train a policy from random weights on scenes of the `train` split; `target/policy` is then a Hugging Face folder."""
    from learners.plan import FitPlan
    from rlsys.app.models import training_learner

    recipe = config.sft
    random_weights = make_policy(target / "random", seed=config.seed)
    learner = start_learner(
        config, host, random_weights, objective=registry.objective.make("sft"), options=training_learner(config, recipe)
    )
    try:
        examples = demonstrations(recipe.num_examples, tasks=recipe.tasks, partner_rate=recipe.partner_rate)
        plan = FitPlan.of_recipe(recipe, seed=config.seed, num_examples=recipe.num_examples)
        learner.train(host.progress.track("sft", examples, recipe.num_examples), plan)
        learner.save(str(target))
    finally:
        learner.close()


def main(words: list[str]) -> int:
    """Make the policy if it is not cached; prints its folder."""
    from rlsys.app.command import run_with_host
    from rlsys.app.models import policy_folder

    return run_with_host(words, lambda config, host: print(policy_folder(config, host)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
