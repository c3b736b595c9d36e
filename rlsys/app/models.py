"""The models of a run: given folders, or folders that the stages of the configuration make and the cache keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

from learners.examples.kinds import kind_of
from rlsys.app import cache, code, supervised
from rlsys.app.starting import Context
from rlsys.errors import ConfigError
from rlsys.records import Prompt, RolloutGroup
from rlsys.report.metrics import plain, versions
from rlsys.stages.base import MODEL, Stage, describe, in_order, stage_named
from rlsys.stages.recipe import Recipe

_WITHOUT_EFFECT = ("ray",)
"""Packages whose version changes no weight."""


def policy_folder(config: Any, context: Context) -> Path:
    """The Hugging Face folder of the policy.

    Raises:
        ConfigError: `policy.model` is neither a stage nor a folder nor a name that the hub knows, or a stage cannot run.
    """
    return model_folder(config, context, config.resolved("policy", config.policy.model), "policy.model")


def role_folders(config: Any, context: Context) -> dict[str, Path]:
    """The Hugging Face folders of the policy and of all roles that have engines of their own.

    Raises:
        ConfigError: as `policy_folder`.
    """
    return {role: role_folder(config, context, role) for role in config.models()}


def role_folder(config: Any, context: Context, role: str) -> Path:
    """The Hugging Face folder of one role; see `role_folders`."""
    if role == "policy":
        return policy_folder(config, context)
    model = config.resolved(role, config.engines[role].model)
    return model_folder(config, context, model, f"engines.{role}.model")


def model_folder(config: Any, context: Context, model: str, key: str) -> Path:
    """The Hugging Face folder of a model. Stages that the model needs and that are not cached are run first.

    Args:
        config: configuration of the run.
        context: the machine and the display of progress.
        model: name of a stage (`stage:NAME`), or a Hugging Face folder or name.
        key: key of the configuration that names the model, for the error message.

    Raises:
        ConfigError: as `policy_folder`.
    """
    needed = in_order(config.stages, [model])
    keys = stage_keys(config, needed)
    missing = [name for name in needed if not cache.folder_of(name, keys[name]).exists()]
    for name in missing:
        config.stages[name].check()
    for name in missing:
        tools = Tools(config=config, context=context, label=name)
        stage = config.stages[name]
        cache.cached(name, keys[name], lambda target, stage=stage, tools=tools: stage.make(target, tools))
    own = stage_named(model)
    return cache.folder_of(own, keys[own]) / MODEL if own else given_folder(model, key)


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The implementation of `rlsys.stages.base.StageTools`: the tools that a stage works with."""

    config: Any
    context: Context
    label: str
    """Name of the stage's work in the display of progress."""

    @property
    def seed(self) -> int:
        return self.config.seed

    def model(self, name: str) -> Path:
        """See `StageTools.model`."""
        return model_folder(self.config, self.context, name, self.label)

    def respond(self, model: Path, prompts: Sequence[Prompt], **options: Any) -> Iterator[RolloutGroup]:
        """See `StageTools.respond`."""
        return supervised.respond(self.config, self.context, model, prompts, label=self.label, **options)

    def train(
        self,
        model: Path,
        examples: Sequence[Any],
        target: Path,
        *,
        objective: Any,
        recipe: Recipe,
        learner: Mapping[str, Any] | None,
    ) -> None:
        """See `StageTools.train`."""
        supervised.train(
            self.config,
            self.context,
            model,
            examples,
            target,
            objective=objective,
            recipe=recipe,
            learner=learner,
            label=self.label,
        )


def stage_keys(config: Any, names: Sequence[str], *, find: code.Find = code.installed) -> dict[str, dict[str, Any]]:
    """The cache keys of stages: JSON values that are equal if the same weights result.

    Args:
        config: configuration of the run.
        names: names of stages, each after those that it needs.
        find: locates the file of a module.

    Raises:
        ConfigError: data that a stage reads is missing or not as described.
    """
    keys: dict[str, dict[str, Any]] = {}
    for name in names:
        stage = config.stages[name]
        keys[name] = made_of(config, stage, keys, find=find)
    return keys


def made_of(config: Any, stage: Stage, keys: Mapping[str, Any], *, find: code.Find = code.installed) -> dict[str, Any]:
    """The cache key of one stage: everything that determines its model.

    Args:
        config: configuration of the run.
        stage: the stage.
        keys: keys of the stages that it needs.
        find: locates the file of a module.
    """
    plugins = list(_plugins(stage))
    kinds = [plugin.consumes for plugin in plugins if hasattr(plugin, "consumes")]
    listed = [
        *(code.LEARNING if stage.needs_learner else ()),
        *(type(kind_of(kind)).__module__ for kind in kinds),
        *(code.RESPONDING if any(getattr(plugin, "needs_engine", False) for plugin in plugins) else ()),
    ]
    found = {
        "stage": plain(describe(stage)),
        "models": {model: _identity(model, keys) for model in stage.models()},
        "seed": config.seed,
        "code": code.code_hash([type(plugin).__module__ for plugin in plugins], listed, find=find),
        "versions": {package: number for package, number in versions().items() if package not in _WITHOUT_EFFECT},
    }
    if stage.needs_learner:
        found["learner"] = plain(supervised.deciding_options(config, stage.learner))
    return found


def stage_lines(config: Any, models: Iterable[str]) -> list[str]:
    """One line for each stage that some models need: what the stage does, and whether its model is cached.

    Raises:
        ConfigError: data that a stage reads is missing or not as described.
    """
    lines = []
    keys: dict[str, dict[str, Any]] = {}
    for name in in_order(config.stages, models):
        stage = config.stages[name]
        state = ""
        # A model of the hub would have to be downloaded before its identity is known.
        if all(stage_named(model) in keys or Path(model).expanduser().is_dir() for model in stage.models()):
            keys[name] = made_of(config, stage, keys)
            folder = cache.folder_of(name, keys[name])
            state = f"; made already: {folder}" if folder.exists() else "; to be made"
        lines.append(f"stage {name}: {stage.summary()}{state}")
    return lines


def _plugins(plugin: Any) -> Iterator[Any]:
    """A plug-in and the plug-ins among its options."""
    yield plugin
    for value in vars(plugin).values():
        if is_dataclass(value):
            yield from _plugins(value)


def _identity(model: str, keys: Mapping[str, Any]) -> str:
    """What distinguishes a model from another without reading its weights: the key of its stage, or the names, sizes and
    modification times of its files.
    """
    name = stage_named(model)
    if name is not None:
        return cache.digest(keys[name])
    folder = given_folder(model, "model")
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stamps = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{folder} {hashlib.sha256(json.dumps(stamps).encode()).hexdigest()[:16]}"


def given_folder(model: str, key: str) -> Path:
    """The folder of a model that no stage makes; a model that is given by its name on the hub is downloaded.

    Raises:
        ConfigError: there is no such folder and no such model.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{key}: no folder {model!r}, and no such model can be had from the hub") from error
