"""What a kind of example is to the learner, and the kinds by their record class.

    @example_kind(MyRecord)
    class MyExamples(ExampleKind):
        inputs_type = MyInputs
        def units(self, records, trees): ...
        def inputs(self, batch, answers): ...

makes records of a class that `rlsys.records.example` registers something that objectives with `consumes = MyRecord` are trained
on. A file in this folder is found by itself, a module elsewhere if `RLSYS_PLUGINS` names it. The files import no torch: the
process that shares batches out does without it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from learners.trees import Unit
from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.records import Response

if TYPE_CHECKING:  # these import torch
    from learners.answers import Answers
    from learners.collate import TreeMaker
    from learners.micro_batch import MicroBatch

T = TypeVar("T", bound="type[ExampleKind]")
_KINDS: dict[type, ExampleKind] = {}
_CHARACTERS = 4
"""Of a token, about."""


class ExampleKind:
    """How records of one class are trained on. Holds no state."""

    inputs_type: ClassVar[type]
    """Input record of the objectives, a subclass of `rlsys.objectives.inputs.Inputs`."""

    def units(self, records: Sequence[Any], trees: TreeMaker) -> list[Unit]:
        """The records as trees; each record is an example of exactly one unit.

        Raises:
            RefusedRecord: a record cannot be trained on.
        """
        raise NotImplementedError

    def inputs(self, batch: MicroBatch, answers: Answers) -> Any:
        """What the objective is given for a micro-batch's examples, which may be none."""
        raise NotImplementedError

    def cost(self, record: Any) -> float:
        """What a record costs to compute, in any unit that is the same for a batch: ranks get like sums of it."""
        raise NotImplementedError

    def group(self, record: Any) -> str:
        """Records of the same group stay together on one rank as far as they fit, since they share a prompt."""
        return record.prompt.id

    def completed(self, batch: Sequence[Any], needs: frozenset[str]) -> list[Any]:
        """The records of a whole batch, before it is shared out, with what only the whole batch can give them.

        Args:
            needs: of the objective.
        """
        return list(batch)


def tokens_in(response: Response) -> float:
    """Tokens of a response; an estimate where only its text is known."""
    return len(response.token_ids) or 1 + len(response.text) / _CHARACTERS


def tokens_before(record: Any) -> float:
    """Tokens of the prompt of a record with `prompt` and `prompt_token_ids`; an estimate where only its text is known."""
    return len(record.prompt_token_ids) or sum(len(turn.text) for turn in record.prompt.turns) / _CHARACTERS


def example_kind(record: type) -> Callable[[T], T]:
    """Decorator that registers the kind of a record class."""

    def add(kind: T) -> T:
        _KINDS[record] = kind()
        return kind

    return add


def kind_of(record: type) -> ExampleKind:
    """The kind of a record class.

    Raises:
        ConfigError: there is no adapter for it.
    """
    if record not in _KINDS:
        _discover()
    if record not in _KINDS:
        known = ", ".join(sorted(kind.__name__ for kind in _KINDS))
        raise ConfigError(f"the learner has no adapter for {record.__name__} records; there are adapters for {known}")
    return _KINDS[record]


def _discover() -> None:
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
    registry.discover_outside()
