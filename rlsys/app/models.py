"""The models of a run: folders as they are given, or those of the scenes world, made on the spot and cached."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlsys.app import cache, make_judge, make_policy
from rlsys.app.starting import Context
from rlsys.errors import ConfigError
from rlsys.report.metrics import versions

WORLD = "scenes"
LEARNING = (
    "rlsys.worlds.scenes",
    "learners",
    "rlsys.objectives",
    "rlsys.training",
    "rlsys.seeding",
    "rlsys.chat",
    "rlsys.app.supervised",
)
"""Code that decides what a model made here learns, ..."""
ANSWERING = ("actors.rollout", "actors.engines", "rlsys.asking.prompts", "rlsys.conversations.single_turn")
"""... and what a judge is shown."""


def policy_folder(config: Any, context: Context) -> Path:
    """The Hugging Face folder of the policy.

    Raises:
        ConfigError: `policy.model` is neither `scenes` nor a folder nor a name the hub's cache knows.
    """
    if config.policy.model != WORLD:
        return _given(config.policy.model, "policy.model")
    made_of = {
        "recipe": asdict(config.sft),
        "seed": config.seed,
        "code": cache.source_hash([*LEARNING, "rlsys.app.make_policy"]),
        "versions": versions(),
    }
    return cache.cached("policy", made_of, lambda target: make_policy.make(config, context, target)) / "policy"


def role_folders(config: Any, context: Context, policy: Path) -> dict[str, Path]:
    """The Hugging Face folders of all roles that have engines of their own.

    Raises:
        ConfigError: as `policy_folder`.
    """
    return {role: role_folder(config, context, policy, role) for role in config.roles()}


def role_folder(config: Any, context: Context, policy: Path, role: str) -> Path:
    """The Hugging Face folder of a role's model; `scenes` is the judge of that world."""
    model = config.engines[role].model
    if model != WORLD:
        return _given(model, f"engines.{role}.model")
    made_of = {
        "policy": policy.parent.name if config.policy.model == WORLD else str(policy),
        "recipe": asdict(config.judge_training),
        "answers": {"max_tokens": config.schedule.max_tokens, "engine": asdict(config.rollout.engine)},
        "seed": config.seed,
        "code": cache.source_hash([*LEARNING, *ANSWERING, "rlsys.app.make_judge"]),
        "versions": versions(),
    }
    return cache.cached("judge", made_of, lambda target: make_judge.make(config, context, target, policy)) / "policy"


def _given(model: str, key: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{key}: no folder {model!r}, and no such model can be had from the hub") from error
