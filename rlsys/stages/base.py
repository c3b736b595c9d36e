"""What every stage has in common: how its model is named elsewhere, what decides its result, and the tools it works with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.records import Prompt, RolloutGroup
from rlsys.stages.recipe import Recipe

PREFIX = "stage:"
"""`stage:NAME`, wherever a model can be named, is the model that the stage NAME makes."""
MODEL = "model"
"""Folder of the model within that of its stage."""


class StageTools(Protocol):
    """What a stage works with. The application stands behind it: engines, learners, and the models of other stages."""

    seed: int
    """Root seed of the run."""

    def model(self, name: str) -> Path:
        """Hugging Face folder of a model: `stage:NAME`, or a folder or name.

        Raises:
            ConfigError: there is no such model.
        """

    def respond(
        self, model: Path, prompts: Sequence[Prompt], *, engine: Any, batch: int, num_candidates: int, max_tokens: int
    ) -> Iterator[RolloutGroup]:
        """A model's responses to prompts, at temperature 1; one group per prompt, in their order.

        Args:
            engine: a plug-in of group `engine`.
            batch: prompts per engine call.
            max_tokens: longest response.
        """

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
        """Train from the weights in `model`; `target/model` is then a Hugging Face folder.

        Args:
            learner: options of the learner; those of the run if `None`.
        """


@dataclass(kw_only=True)
class Stage:
    """Base of the plug-ins of group `stage`: options of what is done, and `make`."""

    needs_learner: ClassVar[bool] = False
    """Whether `make` trains, so that the learner's code decides what comes out."""

    def models(self) -> tuple[str, ...]:
        """Names of the models that this stage works on."""
        return ()

    def summary(self) -> str:
        """What the stage does, in a line.

        Raises:
            ConfigError: as `check`.
        """
        return registry.stage.name_of(self)

    def check(self) -> None:
        """See what can be seen before anything starts.

        Raises:
            ConfigError: what the stage reads is missing or not as described.
        """

    def make(self, target: Path, tools: StageTools) -> None:
        """Do the work; `target/model` is then a Hugging Face folder."""
        raise NotImplementedError


def describe(plugin: Any) -> dict[str, Any]:
    """JSON values that decide what a stage, or a plug-in among its options, does: its kind, and the options, those of
    plug-ins among them likewise."""
    if hasattr(plugin, "identity"):
        options = plugin.identity()
    else:
        options = {field.name: getattr(plugin, field.name) for field in fields(plugin)}
    nested = {name: describe(value) if is_dataclass(value) else value for name, value in options.items()}
    return {"plugin": type(plugin).__qualname__, **nested}


def stage_named(model: str) -> str | None:
    """Name of the stage that makes a model; `None` if no stage does.

    >>> stage_named("stage:judge")
    'judge'
    """
    return model.removeprefix(PREFIX) if model.startswith(PREFIX) else None


def in_order(stages: Mapping[str, Stage], models: Iterable[str]) -> list[str]:
    """Names of the stages that some models need, in an order in which each finds the models it works on.

    Args:
        stages: all there are, by name.
        models: names of models; those that no stage makes need none.

    Raises:
        ConfigError: there is no stage of a name, or stages need each other.
    """
    done: list[str] = []

    def visit(model: str, above: tuple[str, ...]) -> None:
        name = stage_named(model)
        if name is None or name in done:
            return
        if name not in stages:
            raise ConfigError(f"{model}: no such stage; there are: {', '.join(stages) or 'none'}")
        if name in above:
            raise ConfigError(f"stages need each other: {' -> '.join([*above, name])}")
        for other in stages[name].models():
            visit(other, (*above, name))
        done.append(name)

    for model in models:
        visit(model, ())
    return done
