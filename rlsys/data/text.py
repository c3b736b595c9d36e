"""Plain text, for continued pre-training: every token carries loss, and no chat template is applied.

The source is one of three. A file of JSON lines (`.jsonl`) has a document in the `text` of each line. Any other file is one
document. A folder is searched, with its subfolders, for text files (`.txt` and `.md`), each of which is one document.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from rlsys import registry
from rlsys.data.base import Data, demonstration
from rlsys.data.json_lines import text_of
from rlsys.errors import ConfigError
from rlsys.prompts.jsonl import read_object
from rlsys.prompts.text import check_text
from rlsys.records import Demonstration, Prompt

if TYPE_CHECKING:
    from rlsys.stages.base import StageTools

_SUFFIXES = (".txt", ".md")
_PARAGRAPH = re.compile(r"\n[ \t]*\n")


@registry.data("text")
@dataclass(kw_only=True)
class Text(Data):
    """Pieces of documents, in their order, as responses to a prompt without turns. Every piece ends with the end-of-sequence
    token, not only the last piece of a document."""

    produces: ClassVar[type] = Demonstration

    path: str = ""
    """A file or folder."""
    max_characters: int = 8000
    """Largest number of characters of a piece. A longer document is cut where a paragraph ends, and a longer paragraph where a
    word ends."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"data.path must name a file or folder, got {self.path!r}")
        if self.max_characters < 1:
            raise ConfigError(f"data.max_characters must be at least 1, got {self.max_characters}")

    def count(self) -> int:
        """The number of pieces.

        Raises:
            ConfigError: the source is missing, empty, or not as described.
        """
        return len(self._pieces)

    def identity(self) -> dict[str, Any]:
        """The options without the path, and a hash of the text."""
        options = {key: value for key, value in asdict(self).items() if key != "path"}
        content = json.dumps([text for _, text in self._pieces]).encode()
        return {**options, "content": hashlib.sha256(content).hexdigest()}

    def examples(self, model: Path, tools: StageTools) -> Sequence[Demonstration]:
        """See `Data.examples`."""
        return [demonstration(Prompt(id=place, turns=()), text) for place, text in self._pieces]

    @cached_property
    def _pieces(self) -> list[tuple[str, str]]:
        """The place and the text of every piece."""
        found = [
            (f"{place}#{number}", piece)
            for place, document in self._documents()
            for number, piece in enumerate(pieces(document, self.max_characters))
        ]
        if not found:
            raise ConfigError(f"data.path: {self.path} has no text")
        return found

    def _documents(self) -> Iterator[tuple[str, str]]:
        path = Path(self.path)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in _SUFFIXES)
            yield from ((str(file), _read(file)) for file in files)
        elif not path.is_file():
            raise ConfigError(f"data.path must name a file or folder, got {self.path!r}")
        elif path.suffix == ".jsonl":
            for number, line in enumerate(path.read_bytes().splitlines(), start=1):
                if line.strip():
                    place = f"{path}:{number}"
                    yield place, text_of(read_object(line, place), "text", place)
        else:
            yield str(path), _read(path)


def pieces(document: str, max_characters: int) -> list[str]:
    """The document in pieces of at most `max_characters` characters, cut between paragraphs where that is possible.

    >>> pieces("one two\\n\\nthree", 8)
    ['one two', 'three']
    """
    found: list[str] = []
    open_piece = ""
    for paragraph in _PARAGRAPH.split(document.strip()):
        together = f"{open_piece}\n\n{paragraph}" if open_piece else paragraph
        if len(together) <= max_characters:
            open_piece = together
            continue
        if open_piece:
            found.append(open_piece)
        *full, open_piece = _between_words(paragraph, max_characters)
        found += full
    return [piece for piece in [*found, open_piece] if piece.strip()]


def _between_words(paragraph: str, limit: int) -> list[str]:
    cut: list[str] = []
    while len(paragraph) > limit:
        end = paragraph.rfind(" ", 1, limit + 1)
        end = end if end > 0 else limit
        cut.append(paragraph[:end])
        paragraph = paragraph[end:].lstrip(" ")
    return [*cut, paragraph]


def _read(file: Path) -> str:
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error}") from error
    check_text(text, str(file))
    return text
