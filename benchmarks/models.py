"""The models that benchmarks run: the scenes world's own, and one of random weights."""

from __future__ import annotations

import os
from pathlib import Path

from rlsys.worlds.scenes.policy import Shape, make_policy

GIVEN = "RLSYS_BENCH_MODELS"
"""Environment variable: a folder with Hugging Face folders `policy` and `critic`, taken instead of making them."""
SMALL = Shape(hidden=192, layers=4, mlp=512, vision_hidden=128, vision_layers=3, vision_mlp=256)
"""2.7 million parameters: large enough that a learner's step on long sequences is arithmetic and little else."""


def scenes_models() -> tuple[Path, Path]:
    """Policy and critic of the scenes world: those of preset `scenes`, from the cache; if they are not there, they are
    trained, which takes minutes.
    """
    given = os.environ.get(GIVEN)
    if given:
        return Path(given) / "policy", Path(given) / "critic"
    from rlsys.app import config as configuration
    from rlsys.app.cluster import cluster
    from rlsys.app.models import judge_folder, policy_folder
    from rlsys.app.starting import Context
    from rlsys.report.progress import Progress

    config, _ = configuration.load(["preset=scenes"])
    with cluster(None) as machine, Progress() as progress:
        host = Context(machine=machine, progress=progress)
        policy = policy_folder(config, host)
        return policy, judge_folder(config, host)


def small_policy(directory: Path) -> Path:
    """A policy of 2.7 million parameters with random weights, which seldom ends an answer by itself."""
    return make_policy(directory / "small", seed=0, shape=SMALL)
