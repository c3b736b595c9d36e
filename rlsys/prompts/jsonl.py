"""Prompts from a file of JSON lines.

A line holds `id`, then `prompt` (the user's text) or `turns` (`[{"role": ..., "text": ...}, ...]`, the user's last),
and may hold `image` or `images`: a path or a list of paths, relative to the file.
    {"id": "cat-1", "prompt": "What is on the sofa?", "image": "pictures/sofa.png"}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rlsys import registry
from rlsys.errors import ConfigError, PromptsExhausted
from rlsys.prompts.images import load_images
from rlsys.records import Prompt, Turn

_ROLES = ("system", "user", "assistant")


@registry.prompts("jsonl")
@dataclass(kw_only=True)
class JsonlPrompts:
    """Prompts in the order of the file; empty lines do not count."""

    path: str
    """The file."""

    def __post_init__(self) -> None:
        if not self.path:
            raise ConfigError(f"prompts.path must name a file, got {self.path!r}")

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """
        Raises:
            ConfigError: the file is missing, or a line is not as described; the message names the line.
            PromptsExhausted: the file ends before `start + count`.
        """
        file = Path(self.path)
        if not file.is_file():
            raise ConfigError(f"prompts.path must name a file, got {self.path!r}")
        with file.open("rb") as lines:
            numbered = ((number, line) for number, line in enumerate(lines, start=1) if line.strip())
            num_taken = 0
            for number, line in islice(numbered, start, start + count):
                yield _read_line(line, f"{file}:{number}", file.parent)
                num_taken += 1
        if num_taken < count:
            raise PromptsExhausted(f"{file} has {num_taken} of the {count} prompts asked for from position {start}")


def _read_line(line: bytes, place: str, root: Path) -> Prompt:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{place}: not UTF-8: {error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"{place}: not JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("id"), str) or not row["id"]:
        raise ConfigError(f"{place}: every line must be an object with a text `id`")
    turns = _read_turns(row, place)
    stored = [row[key] for key in ("image", "images") if key in row]
    try:
        images = load_images(stored, root)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place}: image: {error}") from error
    return Prompt(id=row["id"], turns=turns, images=images)


def _read_turns(row: Mapping[str, Any], place: str) -> tuple[Turn, ...]:
    if ("prompt" in row) == ("turns" in row):
        raise ConfigError(f"{place}: a line must have either `prompt` or `turns`")
    stored = [{"role": "user", "text": row["prompt"]}] if "prompt" in row else row["turns"]
    good = isinstance(stored, list) and all(
        isinstance(turn, dict) and turn.get("role") in _ROLES and isinstance(turn.get("text"), str) for turn in stored
    )
    if not good or not stored or stored[-1]["role"] != "user":
        raise ConfigError(f"{place}: turns must have a role ({', '.join(_ROLES)}) and a text, the user's last")
    return tuple(Turn(role=turn["role"], text=turn["text"]) for turn in stored)
