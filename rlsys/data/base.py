"""Code that all sources of training examples share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rlsys.records import Demonstration, Prompt, text_response

if TYPE_CHECKING:
    from rlsys.stages.base import StageTools


class Examples(Sequence):
    """Examples that are read or drawn on access, by their position.

    Examples(3, lambda index: index * 10)[1]    # 10
    """

    def __init__(self, count: int, read: Callable[[int], Any]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._read(each) for each in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"example {index} of {self._count}")
        return self._read(index % self._count)


def demonstration(prompt: Prompt, text: str) -> Demonstration:
    """A demonstration of which only the text is known."""
    return Demonstration(prompt=prompt, response=text_response(text))


@dataclass(kw_only=True)
class Data:
    """Base of the plug-ins of group `data`. A source adds `produces` and `examples`."""

    produces: ClassVar[type]
    """Record class of the examples; the objective's `consumes` must be the same."""
    needs_engine: ClassVar[bool] = False
    """Whether a model must respond to prompts before there are examples."""

    def count(self) -> int | None:
        """The number of examples; `None` if it is known only after they have been made.

        Raises:
            ConfigError: the source is missing, or one of its rows is not as described.
        """
        return None

    def models(self) -> tuple[str, ...]:
        """Names of the models that respond to prompts, besides the model that is trained."""
        return ()

    def identity(self) -> dict[str, Any]:
        """JSON values that determine the examples. If they are equal, a model that was trained on the examples need not be
        trained again."""
        return asdict(self)

    def examples(self, model: Path, tools: StageTools) -> Sequence[Any]:
        """All examples, in a fixed order.

        Args:
            model: Hugging Face folder of the model that will be trained.
            tools: tools for sources in which a model responds to prompts.

        Raises:
            ConfigError: for the reasons of `count`.
        """
        raise NotImplementedError
