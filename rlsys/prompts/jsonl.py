"""Prompts from a file of JSON lines.

A line holds `id` and either `prompt` (the user's text) or `turns` (`[{"role": ..., "text": ...}, ...]`, of which the last is
the user's). It may hold `image` or `images`: a path or a list of paths, relative to the file. It may also hold `script`, a list
of texts: the user's further turns, one after each response (`conversation=scripted`).
    {"id": "cat-1", "prompt": "What is on the sofa?", "image": "pictures/sofa.png"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlsys import registry
from rlsys.errors import ConfigError, PromptsExhausted
from rlsys.prompts.images import load_images, stored_paths
from rlsys.prompts.text import check_text
from rlsys.records import Image, Prompt, Turn

_ROLES = ("system", "user", "assistant")


@registry.prompts("jsonl")
@dataclass(kw_only=True)
class JsonlPrompts:
    """Prompts in the order of the file; empty lines do not count."""

    path: str
    """Path of the file."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"prompts.path must name a file, got {self.path!r}")

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """
        Raises:
            ConfigError: the file is missing, or any of its lines is not as described, names an image file that does not exist,
                or repeats the id of another prompt; the message names the line.
            PromptsExhausted: the file ends before `start + count`.
        """
        file, places = Path(self.path), self._places
        if start + count > len(places):
            raise PromptsExhausted(f"{file} has {len(places)} prompts, {start + count} were asked for")
        with file.open("rb") as lines:
            for number, offset in places[start : start + count]:
                lines.seek(offset)
                yield _read_prompt(lines.readline(), f"{file}:{number}", file.parent)

    @cached_property
    def _places(self) -> Sequence[tuple[int, int]]:
        """Number and offset of every line with a prompt. All lines are checked at once, so that a mistake in the last one does
        not end a run after hours.
        """
        file = Path(self.path)
        if not file.is_file():
            raise ConfigError(f"prompts.path must name a file, got {self.path!r}")
        places: list[tuple[int, int]] = []
        known: dict[str, tuple[int, int]] = {}
        offset = 0
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    name, asked = _check(line, f"{file}:{number}", file.parent)
                    other, asked_there = known.setdefault(name, (number, asked))
                    if asked_there != asked:
                        raise ConfigError(
                            f"{file}:{number}: another prompt than line {other}, with the same id {name!r}"
                        )
                    places.append((number, offset))
                offset += len(line)
        return places


def _check(line: bytes, place: str, root: Path) -> tuple[str, int]:
    """Check that a line is as described and that its image files exist, without opening them. Returns the line's id and a hash
    of its content.
    """
    row = _read_row(line, place)
    turns, paths = read_turns(row, place), check_images(row, place, root)
    return row["id"], hash((turns, paths, read_script(row, place)))


def _read_prompt(line: bytes, place: str, root: Path) -> Prompt:
    row = _read_row(line, place)
    return Prompt(
        id=row["id"],
        turns=read_turns(row, place),
        script=read_script(row, place),
        images=read_images(row, place, root),
    )


def read_script(row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
    """A line's further user turns.

    Raises:
        ConfigError: `script` is not a list of texts.
    """
    stored = row.get("script", [])
    if not isinstance(stored, list) or not all(isinstance(text, str) for text in stored):
        raise ConfigError(f"{place}: script must be a list of texts, got {stored!r}")
    for text in stored:
        check_text(text, place)
    return tuple(Turn(role="user", text=text) for text in stored)


def _read_row(line: bytes, place: str) -> dict[str, Any]:
    row = read_object(line, place)
    if not isinstance(row.get("id"), str) or not row["id"]:
        raise ConfigError(f"{place}: every line must be an object with a text `id`")
    return row


def read_object(line: bytes, place: str) -> dict[str, Any]:
    """The JSON object of a line.

    Args:
        line: the line as stored.
        place: file and number of the line, for the error message.

    Raises:
        ConfigError: the line is not a JSON object in UTF-8.
    """
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: every line must be an object, got {type(row).__name__}")
    return row


def check_images(row: Mapping[str, Any], place: str, root: Path) -> tuple[str, ...]:
    """The paths of a line's images, which are not opened.

    Raises:
        ConfigError: there is no file at one of them.
    """
    paths = tuple(stored_paths(_stored_images(row)))
    for path in paths:
        if not (root / path).is_file():
            raise ConfigError(f"{place}: image: there is no file {str(root / path)!r}")
    return paths


def read_images(row: Mapping[str, Any], place: str, root: Path) -> tuple[Image, ...]:
    """A line's images, from the keys `image` and `images`.

    Raises:
        ConfigError: an image cannot be read.
    """
    try:
        return load_images(_stored_images(row), root)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: image: {error}") from error


def _stored_images(row: Mapping[str, Any]) -> list[Any]:
    return [row[key] for key in ("image", "images") if key in row]


def read_turns(row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
    """A line's conversation, from the key `prompt` or `turns`.

    Raises:
        ConfigError: the line has both keys or neither, or turns that are not as described.
    """
    if ("prompt" in row) == ("turns" in row):
        raise ConfigError(f"{place}: a line must have either `prompt` or `turns`")
    stored = [{"role": "user", "text": row["prompt"]}] if "prompt" in row else row["turns"]
    good = isinstance(stored, list) and all(
        isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("text"), str) for turn in stored
    )
    if not good or not stored or stored[-1]["role"] != "user":
        raise ConfigError(f"{place}: turns must have a role ({', '.join(_ROLES)}) and a text, the user's last")
    for turn in stored:
        check_text(turn["text"], place)
    return tuple(Turn(role=turn["role"], text=turn["text"]) for turn in stored)
