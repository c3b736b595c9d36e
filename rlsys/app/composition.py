"""Hydra's composition of the configuration tree, with additions of our own for plug-ins, roles and evaluations."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf, open_dict

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.schedules.phases import OPTION_GROUPS

ROOT = "run"
"""Name of the root YAML file in `configs/`."""
CONFIGS = "RLSYS_CONFIGS"
"""Environment variable that lists folders of presets outside this repository, separated by commas. Each folder has the layout
of `configs/`, with `method/NAME.yaml`, `preset/NAME.yaml` and so on.
"""
_EVALUATION = re.compile(r"\+{0,2}(evaluations\.([A-Za-z_]\w*)\..*)", re.DOTALL)
CHOSEN_EVALUATIONS = "evaluations="
"""Start of an override that names all evaluations, such as `evaluations=none`, `evaluations=scenes` or
`evaluations=[scenes,judged]`.
"""
_ROLE = re.compile(r"engines\.([A-Za-z_]\w*)\.")
PLUGIN_OPTIONS = "plugin_options_of"
"""Hydra group that puts in the options of the chosen plug-ins, before the command line's overrides."""


def composed(overrides: list[str]) -> DictConfig:
    """Compose the configuration tree in two passes. The first pass finds which plug-ins are chosen; the second puts in the
    options that presets and methods give to those plug-ins (`RunConfig.plugin_options`). Overrides of the command line win over
    both.
    """
    node, engines = _roles_named(overrides)
    overrides = [*engines, *overrides]
    store = ConfigStore.instance()
    store.store(group=PLUGIN_OPTIONS, name="none", node=node, package="_global_")
    # Options of evaluations are applied after the chosen evaluations are known: an evaluation that is not there yet is added by
    # its name.
    measured = [
        override for override in overrides if override.startswith(CHOSEN_EVALUATIONS) or _EVALUATION.match(override)
    ]
    first = _compose([override for override in overrides if override not in measured])
    chosen = {key.rpartition("@")[2]: str(name) for key, name in first.hydra.runtime.choices.items()}
    overrides, added, removed = _evaluations(overrides, set(first.evaluations))
    for name in removed:
        del chosen[f"evaluations.{name}"]
    given = OmegaConf.to_container(first.plugin_options, resolve=True)
    # Hydra puts an added evaluation in after everything else, so that its options must come as overrides.
    settings = [
        f"evaluations.{name}.{key}={json.dumps(value)}"
        for name in added
        for key, value in given.get(f"evaluations.{name}", {}).get(name, {}).items()
    ]
    for place, options in given.items():
        if place not in chosen:
            continue
        path = place.split(".")
        found = options.get(chosen[place], {})
        for key in reversed(path):
            found = {key: found}
        node = OmegaConf.to_container(OmegaConf.merge(node, found))
    store.store(group=PLUGIN_OPTIONS, name="chosen", node=node, package="_global_")
    tree = _compose([f"{PLUGIN_OPTIONS}=chosen", *settings, *overrides])
    with open_dict(tree):
        del tree["hydra"]
    tree.schedule.phases = [_with_plugin_options(phase, given) for phase in tree.schedule.phases]
    return tree


def _evaluations(overrides: list[str], there: set[str]) -> tuple[list[str], list[str], list[str]]:
    """Complete the overrides of evaluations. Returns three lists: the overrides, with others that choose or remove evaluations
    in place of `evaluations=...`; the names of the evaluations that they add; the names of those that they remove.

    Raises:
        ConfigError: an option is of an evaluation that does not exist.
    """
    choices = [override for override in overrides if override.startswith(CHOSEN_EVALUATIONS)]
    overrides = [override for override in overrides if override not in choices]
    options = [found for found in map(_EVALUATION.match, overrides) if found]
    for name in (found[2] for found in options):
        if name not in there and name not in registry.evaluation:
            raise ConfigError(
                f"no evaluation named {name!r}; there are: {', '.join(sorted(there | set(registry.evaluation)))}"
            )
    # A plus in front of an option says the same, because the evaluation is there when the option is applied.
    overrides = [found[1] if (found := _EVALUATION.match(override)) else override for override in overrides]
    named = [found[2] for found in options if found[2] in registry.evaluation]
    removed: list[str] = []
    if choices:
        names = [name.strip() for name in choices[-1].removeprefix(CHOSEN_EVALUATIONS).strip("[]{}").split(",")]
        names = [name for name in names if name not in ("", "none")]
        removed = sorted(there - {*names, *named})
        named = [*names, *named]
    added = [name for name in dict.fromkeys(named) if name not in there]
    chosen = [f"+evaluation@evaluations.{name}={name}" for name in added]
    return [*(f"~evaluation@evaluations.{name}" for name in removed), *chosen, *overrides], added, removed


def _roles_named(overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Let `engines.NAME.model=...` add a role that no preset names. Returns a node that holds the role, and overrides that
    choose an engine for the role where options of its engine are given.
    """
    names = dict.fromkeys(found[1] for found in map(_ROLE.match, overrides) if found)
    node = {"engines": {name: {"num_actors": 1} for name in names if name != "judge"}}
    engines = []
    for name in node["engines"]:
        chosen = any(f"engine@engines.{name}.engine=" in override for override in overrides)
        if not chosen and any(override.startswith(f"engines.{name}.engine.") for override in overrides):
            engines.append(f"+engine@engines.{name}.engine=vllm")
    return node, engines


def _with_plugin_options(phase: DictConfig, given: dict[str, Any]) -> dict[str, Any]:
    """A phase of the schedule. If it names another plug-in, that plug-in gets the options that presets give to it."""
    found = OmegaConf.to_container(phase)
    for group in OPTION_GROUPS:
        options = found.get(group)
        if isinstance(options, str):
            options = {"name": options}
        if isinstance(options, dict) and "name" in options:
            found[group] = {**given.get(group, {}).get(options["name"], {}), **options}
    return found


def _compose(overrides: list[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    folders = [Path(folder).expanduser().absolute() for folder in filter(None, os.environ.get(CONFIGS, "").split(","))]
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{CONFIGS}: no folder {str(folder)!r}")
    if folders:
        overrides = [f"hydra.searchpath=[{','.join(f'file://{folder}' for folder in folders)}]", *overrides]
    with initialize_config_module("configs", version_base="1.3"):
        return compose(ROOT, overrides=overrides, return_hydra_config=True)
