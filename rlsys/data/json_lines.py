"""Examples from a file of JSON lines. The whole file is checked before training starts; after that it is read row by row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.data.base import Data, Examples
from rlsys.errors import ConfigError
from rlsys.prompts.images import load_images, stored_paths
from rlsys.prompts.jsonl import read_object
from rlsys.prompts.text import check_text
from rlsys.records import Image, Prompt, Turn

if TYPE_CHECKING:
    from rlsys.stages.base import StageTools

Row = Mapping[str, Any]
Images = Callable[[Row, str], tuple[Image, ...]]
"""A function that gives a row's images. Its second argument is the row's place, for error messages."""
ROLES = ("system", "user", "assistant")


@dataclass(kw_only=True)
class JsonLines(Data):
    """Base of the sources that read a JSON-lines file. A source adds the method `example`. Empty lines are skipped."""

    path: str = ""
    """The file."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"data.path must name a file, got {self.path!r}")

    def example(self, row: Row, place: str, images: Images) -> Any:
        """The example in a row.

        Args:
            place: file and line, for error messages.
            images: a function that gives the row's images.

        Raises:
            ConfigError: the row is not as described.
        """
        raise NotImplementedError

    def count(self) -> int:
        """The number of rows, after a check of the whole file.

        Raises:
            ConfigError: the file does not exist, it has no rows, or a row is not as described; the message names the line.
        """
        return len(self._checked[0])

    def identity(self) -> dict[str, Any]:
        """The options without the path, and a hash of the file's content. Images are identified by names, sizes and times."""
        options = {key: value for key, value in asdict(self).items() if key != "path"}
        return {**options, "content": self._checked[1]}

    def examples(self, model: Path, tools: StageTools) -> Sequence[Any]:
        """See `Data.examples`."""
        file, places = Path(self.path), self._checked[0]

        def read(index: int) -> Any:
            number, offset = places[index]
            with file.open("rb") as lines:
                lines.seek(offset)
                place = f"{file}:{number}"
                return self.example(read_object(lines.readline(), place), place, self._load_images)

        return Examples(len(places), read)

    @cached_property
    def _checked(self) -> tuple[list[tuple[int, int]], str]:
        """The line number and the offset of every row, and a hash of the content."""
        file = Path(self.path)
        if not file.is_file():
            raise ConfigError(f"data.path must name a file, got {self.path!r}")
        hasher = hashlib.sha256()
        places: list[tuple[int, int]] = []
        offset = 0

        def no_images(row: Row, place: str) -> tuple[Image, ...]:
            for path in stored_paths(_stored_images(row)):
                hasher.update(_stamp(file.parent / path, place).encode())
            return ()

        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    hasher.update(line)
                    place = f"{file}:{number}"
                    self.example(read_object(line, place), place, no_images)
                    places.append((number, offset))
                offset += len(line)
        if not places:
            raise ConfigError(f"data.path: {self.path} has no rows")
        return places, hasher.hexdigest()

    def _load_images(self, row: Row, place: str) -> tuple[Image, ...]:
        try:
            return load_images(_stored_images(row), Path(self.path).parent)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{place}: image: {error}") from error


def text_of(row: Row, key: str, place: str) -> str:
    """The text that a row has under a key.

    Raises:
        ConfigError: the row has no such text, or the text is empty or not Unicode.
    """
    text = row.get(key)
    if not isinstance(text, str) or not text:
        raise ConfigError(f"{place}: {key} must be a text that is not empty, got {text!r}")
    check_text(text, place)
    return text


def turns_of(messages: Any, key: str, place: str) -> tuple[Turn, ...]:
    """The turns of a conversation that is stored as `[{"role": ..., "content": ...}, ...]`.

    Raises:
        ConfigError: the conversation is empty or stored in another form.
    """
    good = isinstance(messages, list) and all(
        isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
        for turn in messages
    )
    if not good or not messages:
        raise ConfigError(
            f"{place}: {key} must be a list of messages, each with a role ({', '.join(ROLES)}) and a content"
        )
    for turn in messages:
        check_text(turn["content"], place)
    return tuple(Turn(role=turn["role"], text=turn["content"]) for turn in messages)


def prompt_of(row: Row, place: str, images: Images) -> Prompt:
    """The prompt of a row. The key `prompt` holds the user's text, or a conversation that ends with the user's turn and is
    stored as `turns_of` describes.

    Raises:
        ConfigError: `prompt` is neither.
    """
    if isinstance(row.get("prompt"), list):
        turns = turns_of(row["prompt"], "prompt", place)
        if turns[-1].role != "user":
            raise ConfigError(f"{place}: prompt must end with the user's message, got one of role {turns[-1].role!r}")
    else:
        turns = (Turn(role="user", text=text_of(row, "prompt", place)),)
    return Prompt(id=place, turns=turns, images=images(row, place))


def _stored_images(row: Row) -> list[Any]:
    return [row[key] for key in ("image", "images") if key in row]


def _stamp(path: Path, place: str) -> str:
    """A line that changes if a file changes, made without reading the file: its name, size and time of modification."""
    try:
        found = path.stat()
    except OSError as error:
        raise ConfigError(f"{place}: image: there is no file {str(path)!r}") from error
    return f"{path.name} {found.st_size} {found.st_mtime_ns}\n"
