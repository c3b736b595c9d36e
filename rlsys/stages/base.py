"""Code that all stages share: the names of their models, the description that decides their results, and their tools."""

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
"""Wherever a model can be named, `stage:NAME` is the model that the stage NAME makes."""
MODEL = "model"
"""Name of the model's folder within the folder of its stage."""


class StageTools(Protocol):
    """The tools that a stage works with. The application implements them: engines, learners, and the models of other stages."""

    seed: int
    """Root seed of the run."""

    def model(self, name: str) -> Path:
        """The Hugging Face folder of a model.

        Args:
            name: `stage:NAME`, or a folder or name.

        Raises:
            ConfigError: there is no such model.
        """

    def respond(
        self, model: Path, prompts: Sequence[Prompt], *, engine: Any, batch: int, num_candidates: int, max_tokens: int
    ) -> Iterator[RolloutGroup]:
        """A model's responses to prompts at temperature 1; one group per prompt, in the order of the prompts.

        Args:
            engine: a plug-in of group `engine`.
            batch: prompts per engine call.
            num_candidates: responses per prompt.
            max_tokens: largest number of tokens of a response.
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
        """Train from the weights in `model`, and write the result to `target/model` as a Hugging Face folder.

        Args:
            learner: options of the learner; `None` takes those of the run.
        """


@dataclass(kw_only=True)
class Stage:
    """Base of the plug-ins of group `stage`. The fields are the options of the work, and `make` does the work."""

    needs_learner: ClassVar[bool] = False
    """Whether `make` trains, so that the result depends on the learner's code."""

    def models(self) -> tuple[str, ...]:
        """Names of the models that this stage works on."""
        return ()

    def summary(self) -> str:
        """One line that says what the stage does.

        Raises:
            ConfigError: for the reasons of `check`.
        """
        return registry.stage.name_of(self)

    def check(self) -> None:
        """Check everything that can be checked before anything starts.

        Raises:
            ConfigError: data that the stage reads is missing or not as described.
        """

    def make(self, target: Path, tools: StageTools) -> None:
        """Do the work, and write the model to `target/model` as a Hugging Face folder."""
        raise NotImplementedError


def describe(plugin: Any) -> dict[str, Any]:
    """JSON values that determine what a stage does: its class and its options. Options that are plug-ins are described in the
    same way."""
    if hasattr(plugin, "identity"):
        options = plugin.identity()
    else:
        options = {field.name: getattr(plugin, field.name) for field in fields(plugin)}
    nested = {name: describe(value) if is_dataclass(value) else value for name, value in options.items()}
    return {"plugin": type(plugin).__qualname__, **nested}


def stage_named(model: str) -> str | None:
    """The name of the stage that makes a model; `None` if no stage makes it.

    >>> stage_named("stage:judge")
    'judge'
    """
    return model.removeprefix(PREFIX) if model.startswith(PREFIX) else None


def in_order(stages: Mapping[str, Stage], models: Iterable[str]) -> list[str]:
    """Names of the stages that some models need, ordered so that each stage comes after the stages whose models it needs.

    Args:
        stages: all stages, by name.
        models: names of models; a model that no stage makes needs no stage.

    Raises:
        ConfigError: a named stage does not exist, or stages need each other.
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
