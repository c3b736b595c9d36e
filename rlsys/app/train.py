"""`rlsys train`: train a model on your own examples, or make one of the configuration's stages."""

from __future__ import annotations

import json
import shutil
import sys
import time
from dataclasses import fields
from pathlib import Path
from statistics import fmean
from typing import Any

from rlsys import registry
from rlsys.app import config as configuration
from rlsys.app import plan as planning
from rlsys.app.cluster import cluster, look
from rlsys.app.models import Tools, given_folder, model_folder, stage_lines
from rlsys.app.starting import Context
from rlsys.app.supervised import CURVE, learner_options
from rlsys.errors import ConfigError
from rlsys.report.progress import Progress, quiet_libraries
from rlsys.stages.base import MODEL, PREFIX, in_order, stage_named
from rlsys.stages.recipe import Recipe
from rlsys.stages.train import Train

NAME = "train"
"""Name of the training in messages, and the first part of its folder's name."""


def main(overrides: list[str]) -> int:
    """Train, or only print the plan (`dry_run=true`), and print the folder of the model. Returns the exit status."""
    return configuration.run_command(overrides, lambda config, tree: _train(config, tree, overrides))


def _train(config: Any, tree: Any, overrides: list[str]) -> int:
    made = config.train.stage
    if made is None:
        stage = stage_of(config)
        stage.check()
    elif config.data is not None:
        raise ConfigError(f"train.stage={made} says what is trained, and so does data; give one of them")
    else:
        in_order(config.stages, [PREFIX + made])
    if config.dry_run:
        print(_stage_plan(config, made) if made else _plan(config, stage))
        return 0
    quiet_libraries()
    if made:
        with cluster(config.ray_address) as machine, Progress() as progress:
            folder = model_folder(config, Context(machine=machine, progress=progress), PREFIX + made, "train.stage")
    else:
        folder = _into_folder(config, tree, overrides, stage)
    print(_curve(folder.parent / CURVE), end="")
    print(folder)
    return 0


def stage_of(config: Any) -> Train:
    """The stage that `train`, `data` and `objective` describe; it uses the run's learner.

    Raises:
        ConfigError: there is no source of examples, or no model.
    """
    if config.data is None:
        raise ConfigError(
            f"rlsys train needs data=NAME, there are: {', '.join(sorted(registry.data))}; or train.stage=NAME, of the "
            f"configuration's stages: {', '.join(config.stages) or 'none'}"
        )
    if not config.train.model:
        raise ConfigError("rlsys train needs train.model=FOLDER, or the name of a model on the hub")
    recipe = {field.name: getattr(config.train, field.name) for field in fields(Recipe)}
    stage = Train(model=config.train.model, data=config.data, objective=config.objective, **recipe)
    in_order(config.stages, stage.models())
    return stage


def _into_folder(config: Any, tree: Any, overrides: list[str], stage: Train) -> Path:
    """Train into the run's own folder.

    Raises:
        ConfigError: the folder exists already, or there is no such model.
    """
    for model in stage.models():
        if stage_named(model) is None:
            given_folder(model, "train.model")  # checked before anything starts
    name = config.name or f"{NAME}-{time.strftime('%Y%m%d-%H%M%S')}"
    directory = Path(config.output.runs_dir).absolute() / name
    try:
        directory.mkdir(parents=True)
    except FileExistsError as error:
        raise ConfigError(f"name: {directory} exists already; choose another name") from error
    try:
        configuration.save(tree, overrides, directory)
        with cluster(config.ray_address) as machine, Progress() as progress:
            context = Context(machine=machine, progress=progress)
            stage.make(directory, Tools(config=config, context=context, label=NAME))
    except BaseException:
        if not (directory / CURVE).exists():
            shutil.rmtree(directory)  # so that the corrected command can use the same name
        raise
    return directory / MODEL


def _curve(path: Path) -> str:
    """One line on how the loss developed; empty if nothing was trained."""
    if not path.exists():
        return ""
    losses = [json.loads(line)["loss"] for line in path.read_text().splitlines()]
    tenth = max(1, len(losses) // 10)
    first, last = fmean(losses[:tenth]), fmean(losses[-tenth:])
    return f"{len(losses):,} steps, loss {first:.4f} at the beginning, {last:.4f} at the end: {path}\n"


def _plan(config: Any, stage: Train) -> str:
    lines = [f"{NAME}: {stage.summary()}", *stage_lines(config, stage.models())]
    return "\n".join([*lines, _table(config, stage)])


def _stage_plan(config: Any, name: str) -> str:
    stage = config.stages[name]
    lines = stage_lines(config, [PREFIX + name])
    return "\n".join([*lines, _table(config, stage)] if stage.needs_learner else lines)


def _table(config: Any, stage: Any) -> str:
    """The plan of the learner's ranks, as a table."""
    role = planning.learner_role(learner_options(config, stage.learner), planning.model_size(stage.model, None))
    return planning.table([role], look(config.ray_address))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
