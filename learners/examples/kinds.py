"""The interface of a kind of example, and the registry of kinds by their record class. This code registers a kind:

    @example_kind(MyRecord)
    class MyExamples(ExampleKind):
        inputs_type = MyInputs
        def units(self, records, trees): ...
        def inputs(self, batch, answers): ...

Objectives with `consumes = MyRecord` can then be trained on records of this class, which must also be registered by
`rlsys.records.example`. A file in this folder is found automatically. A module elsewhere is found if `RLSYS_PLUGINS` names it.
The files import no torch, because the process that divides batches into shards does not need it.
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
"""Approximate number of characters of a token."""


class ExampleKind:
    """How the learner trains on records of one class. A kind holds no state."""

    inputs_type: ClassVar[type]
    """Class of the input that objectives receive, a subclass of `rlsys.objectives.inputs.Inputs`."""

    def units(self, records: Sequence[Any], trees: TreeMaker) -> list[Unit]:
        """The records as trees; each record is an example of exactly one unit.

        Raises:
            RefusedRecord: a record cannot be trained on.
        """
        raise NotImplementedError

    def inputs(self, batch: MicroBatch, answers: Answers) -> Any:
        """The objective's input for a micro-batch's examples; the micro-batch may have none."""
        raise NotImplementedError

    def cost(self, record: Any) -> float:
        """The cost of computing on a record, in any unit that is the same for a batch. Shards get similar sums of costs."""
        raise NotImplementedError

    def group(self, record: Any) -> str:
        """The group of a record. Records of one group stay together on one rank as far as they fit, as they share a prompt."""
        return record.prompt.id

    def completed(self, batch: Sequence[Any], needs: frozenset[str]) -> list[Any]:
        """The records of a whole batch, with data added that depends on the whole batch. It is called before the batch is
        divided into shards.

        Args:
            needs: the needs of the objective.
        """
        return list(batch)


def tokens_in(response: Response) -> float:
    """Number of a response's tokens; an estimate where only its text is known."""
    return len(response.token_ids) or 1 + len(response.text) / _CHARACTERS


def tokens_before(record: Any) -> float:
    """Number of the prompt's tokens, for a record with `prompt` and `prompt_token_ids`; an estimate where only its text is
    known.
    """
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
        ConfigError: no kind is registered for the class.
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
