"""The models of a run: folders as they are given, or those of the scenes world, made on the spot and cached."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import learners
import rlsys.objectives
import rlsys.scenes
from rlsys.app import cache, critic, sft
from rlsys.app.parts import Host
from rlsys.errors import ConfigError

WORLD = "scenes"


def policy_folder(config: Any, host: Host) -> Path:
    """The Hugging Face folder of the policy.

    Raises:
        ConfigError: `policy.model` is neither `scenes` nor a folder nor a name the hub's cache knows.
    """
    if config.policy.model != WORLD:
        return _given(config.policy.model, "policy.model")
    made_of = {"recipe": asdict(config.sft), "learner": _training(config), "seed": config.seed, "code": _code()}
    return cache.cached("policy", made_of, lambda target: sft.make(config, host, target)) / "policy"


def critic_folder(config: Any, host: Host, policy: Path) -> Path | None:
    """The Hugging Face folder of the critic; `None` if the feedback needs none.

    Raises:
        ConfigError: as `policy_folder`.
    """
    if not config.feedback.needs_engine:
        return None
    if config.critic.model != WORLD:
        return _given(config.critic.model, "critic.model")
    made_of = {
        "policy": policy.parent.name if config.policy.model == WORLD else str(policy),
        "recipe": asdict(config.critic_training),
        "learner": _training(config),
        "seed": config.seed,
        "code": _code(),
    }
    return cache.cached("critic", made_of, lambda target: critic.make(config, host, target, policy)) / "policy"


def training_learner(config: Any, recipe: Any) -> Any:
    """The learner's options for a supervised run: the run's own, with the recipe's batch and nothing frozen or adapted."""
    return replace(
        config.learner, batch_size=recipe.batch_size, freeze=[], lora=None, initial_copy=False, ema_decay=0.0
    )


def _training(config: Any) -> dict[str, Any]:
    return asdict(training_learner(config, config.sft))


def _code() -> str:
    return cache.source_hash([rlsys.scenes, rlsys.objectives, learners, sft, critic])


def _given(model: str, key: str) -> Path:
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model))
    except (LocalEntryNotFoundError, RepositoryNotFoundError, HFValidationError) as error:
        raise ConfigError(f"{key}: no folder {model!r}, and no such model can be had from the hub") from error
