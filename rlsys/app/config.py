"""From command-line overrides to a live configuration, and from any mistake in them to a one-line message."""

from __future__ import annotations

import difflib
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys import registry
from rlsys.app.composition import composed
from rlsys.common import files
from rlsys.errors import ConfigError, RlsysError

FORMAT = 2
"""Version of the format of a run's folder. Version 1 had other records in its journal."""
WORDS = "overrides.json"
"""File in a run's folder that holds the command-line overrides the run was started with, and the values that they resulted in
then.
"""


def load(words: list[str]) -> tuple[Any, DictConfig]:
    """Compose the configuration of a command.

    Args:
        words: Hydra overrides, such as `preset=scenes schedule.rounds=3`.

    Returns:
        The live `configs.schema.RunConfig`, and the same as a tree for printing and saving.

    Raises:
        ConfigError: a key, value or choice that does not exist or does not fit; one line.
    """
    for override in words:
        if "=" not in override and not override.startswith("~"):
            raise ConfigError(f"{override!r} is not of the form key=value")
    _register()
    tree = _guard(lambda: composed(words), words)
    _check(tree)
    return _guard(lambda: OmegaConf.to_object(tree), words), tree


def load_saved(directory: Path, words: list[str]) -> tuple[Any, DictConfig]:
    """The configuration that a run was started with, with the overrides `words` applied on top of it.

    Raises:
        ConfigError: there is no such run, or the run's own overrides now give other values (presets have changed since then).
    """
    saved_overrides, saved = _saved(directory)
    again = OmegaConf.create(OmegaConf.to_container(load(saved_overrides)[1], resolve=True))
    for key in sorted({*_flat(saved), *_flat(again)}):
        if _flat(saved).get(key) != _flat(again).get(key):
            raise ConfigError(
                f"resume: {key} was {_flat(saved).get(key)!r} when the run was started and would now be "
                f"{_flat(again).get(key)!r}; give {key}=... to decide"
            )
    return load([*saved_overrides, *words])


def save(tree: DictConfig, words: list[str], directory: Path) -> None:
    """Write the configuration of a run, for readers and for `load_saved`.

    Args:
        tree: the configuration tree.
        words: all overrides that the run was started with or, when it is resumed, those added at the resume.
        directory: the run's folder.
    """
    earlier = _saved(directory)[0] if (directory / WORDS).exists() else []
    known = {"format": FORMAT, "words": [*earlier, *words], "config": OmegaConf.to_container(tree, resolve=True)}
    files.replace(directory / WORDS, json.dumps(known))
    files.replace(directory / "config.yaml", OmegaConf.to_yaml(tree, resolve=True))


def check_format(directory: Path, option: str) -> dict[str, Any]:
    """Check that this version can read a run's folder, and return the contents of `overrides.json`.

    Args:
        directory: the run's folder.
        option: name of the option that gives the folder, for errors.

    Raises:
        ConfigError: there is no run, or another version of rlsys wrote it in another format.
    """
    try:
        known = json.loads((directory / WORDS).read_text())
    except OSError as error:
        raise ConfigError(f"{option}: no run in {directory} ({error.strerror}: {error.filename})") from error
    if known.get("format", 1) != FORMAT:
        raise ConfigError(
            f"{option}: {directory} is a run of format {known.get('format', 1)}, this version reads format {FORMAT}: "
            "use the version that began it, or begin a new run from its last policy (policy.model=...)"
        )
    return known


def _saved(directory: Path) -> tuple[list[str], DictConfig]:
    known = check_format(directory, "resume")
    return known["words"], OmegaConf.create(known["config"])


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, DictConfig):
        return {k: v for key in tree for k, v in _flat(tree[key], f"{prefix}{key}.").items()}
    plain = OmegaConf.to_container(tree) if OmegaConf.is_config(tree) else tree
    return {prefix[:-1]: plain}


def _check(tree: DictConfig, prefix: str = "") -> None:
    """Find mistakes that Hydra accepts: a key added to a part that has no such option, and numbers that are not finite.

    Raises:
        ConfigError: there is such a mistake; the message has its key and value.
    """
    part = OmegaConf.get_type(tree)
    for key in tree:
        name = f"{prefix}{key}"
        if is_dataclass(part) and key not in part.__dataclass_fields__:
            raise ConfigError(f"{name}: no such option" + _nearest(name))
        if OmegaConf.is_missing(tree, key):
            continue  # this mistake is reported when the live configuration is made
        if isinstance(tree[key], DictConfig):
            _check(tree[key], f"{name}.")
        elif not _is_finite(tree[key]):
            raise ConfigError(f"{name} must be finite, got {tree[key]}")


def _is_finite(value: Any) -> bool:
    if isinstance(value, (DictConfig, ListConfig)):
        entries = value.values() if isinstance(value, DictConfig) else value
        return all(map(_is_finite, entries))
    return not isinstance(value, float) or math.isfinite(value)


def run_command(
    words: list[str],
    body: Callable[[Any, DictConfig], int],
    *,
    load: Callable[[list[str]], tuple[Any, DictConfig]] = load,
) -> int:
    """Handle the overrides of any command: print `--help` or `--cfg job`, report a mistake in one line, or else run the
    command.

    Args:
        words: command-line overrides and flags.
        body: the command.
        load: makes the configuration from the overrides.

    Returns:
        The exit status: 2 for a mistake in the configuration, 1 for an error that rlsys raised on purpose, else the status that
            `body` returns.
    """
    if "-h" in words or "--help" in words:
        print(_help())
        return 0

    def command() -> int:
        others, show = _take_cfg(words)
        config, tree = load(others)
        if not show:
            return body(config, tree)
        print(OmegaConf.to_yaml(tree, resolve=True), end="")
        return 0

    return guarded(command)


def _take_cfg(words: list[str]) -> tuple[list[str], bool]:
    """The overrides without `--cfg job`, and whether it was among them."""
    joined = [override for override in words if override != "--cfg=job"]
    if "--cfg" not in joined:
        return joined, len(joined) < len(words)
    at = joined.index("--cfg")
    if joined[at + 1 : at + 2] != ["job"]:
        raise ConfigError(f"--cfg takes the word job, got {' '.join(joined[at + 1 : at + 2]) or 'nothing'}")
    return joined[:at] + joined[at + 2 :], True


def guarded(command: Callable[[], int]) -> int:
    """Run a command; an error that rlsys raises on purpose becomes a one-line message and an exit status."""
    try:
        return command()
    except ConfigError as error:
        print(f"rlsys: {error}", file=sys.stderr)
        return 2
    except RlsysError as error:
        print(f"rlsys: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rlsys: interrupted", file=sys.stderr)
        return 130


def _register() -> None:
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    registry.discover()
    import actors.engines
    from configs.schema import RunConfig

    actors.engines.discover()
    ConfigStore.instance().store(name="run_schema", node=RunConfig)


def _guard(step: Callable[[], Any], words: list[str]) -> Any:
    try:
        return step()
    except ConfigError:
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_line(error)) from error
    except (ValueError, TypeError, AttributeError, AssertionError, OverflowError) as error:
        # Hydra and OmegaConf raise errors of other types for overrides that they do not expect.
        raise ConfigError(f"{_one_line(error)} (in: {' '.join(words)})") from error


def _one_line(error: BaseException) -> str:
    """The innermost reason of an error and the key that it concerns, without the libraries' advice."""
    causes: list[BaseException] = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    own = [cause for cause in causes if isinstance(cause, ConfigError)]
    if own:
        return str(own[-1])
    lines = [line.strip() for cause in causes for line in str(cause).splitlines() if line.strip()]
    if lines and "Could not find" in lines[0]:  # the override chooses a name that the group does not have
        at = next((i for i, line in enumerate(lines) if line.startswith("Available options")), len(lines))
        names = [line for line in lines[at + 1 :] if " " not in line]
        missing = lines[0][lines[0].index("Could not find") :]
        return f"{missing}; there are: {', '.join(names)}" if names else missing
    key = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("full_key:")), "")
    inner = [line for line in str(causes[-1]).splitlines() if not line.startswith("In '")]
    reason = next(iter(inner), type(causes[-1]).__name__).strip()
    if key.isdigit():  # the key is the index of a list; only the outer message has the name of the list
        return f"{lines[0]}: {reason}"
    return (reason if not key or key in reason else f"{key}: {reason}") + _nearest(key)


def _nearest(key: str) -> str:
    if not key:
        return ""
    from configs.schema import RunConfig

    tree = OmegaConf.structured(RunConfig)
    *path, last = key.split(".")
    node = OmegaConf.select(tree, ".".join(path)) if path else tree
    names = list(node) if isinstance(node, DictConfig) else []
    if last in names:
        return ""
    close = difflib.get_close_matches(last, names, n=1)
    return f" (did you mean {'.'.join([*path, close[0]])}?)" if close else ""


def _help() -> str:
    registry.discover()
    presets = {group: _names_of(group) for group in ("preset", "method", "cluster")}
    plugins = {
        group: list(getattr(registry, group))
        for group in (
            "prompts",
            "feedback",
            "conversation",
            "examples",
            "objective",
            "replay",
            "transport",
            "data",
            "stage",
        )
    }
    lines = [f"  {group + '=':15}{'|'.join(sorted(names))}" for group, names in {**presets, **plugins}.items()]
    return "\n".join(
        (
            "Options are key=value pairs; groups are chosen by name:",
            *lines,
            f"  evaluations=NAME chooses ({'|'.join(sorted(registry.evaluation))}, [several] or none)",
            "  evaluations.NAME.OPTION=... adds an evaluation",
            "  engines.ROLE.model=... gives a role that a plug-in asks a model; `policy` is the policy itself",
            "--cfg job prints the whole configuration and ends; dry_run=true prints the plan of actors and ends.",
        )
    )


def _names_of(group: str) -> list[str]:
    """The presets of a folder of `configs/`."""
    return [path.name.removesuffix(".yaml") for path in resources.files("configs").joinpath(group).iterdir()]
