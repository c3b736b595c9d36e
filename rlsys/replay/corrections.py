"""Corrections of responses by people: the corrected text is preferred to the original text (as in RLHF-V, arXiv 2312.00849).

The source is a file of JSON lines. Each line holds `response` (the original text), `correction` (the corrected text), and the
prompt. The prompt is given in one of two ways. A line may hold `prompt` (the user's text) or `turns`, with `image` or `images`
as in a line of `prompts=jsonl`, and optionally an `id`. Or it may hold only the `id` of a prompt that was asked in an earlier
round, or in another run if the option `run` names one.
    {"id": "scenes/train/17", "response": "a red dog", "correction": "a brown dog"}
    {"prompt": "What is on the sofa?", "image": "pictures/sofa.png", "response": "Two cats.", "correction": "One cat."}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.journal import Journal, Past, find_prompts
from rlsys.prompts.jsonl import check_images, read_images, read_object, read_turns
from rlsys.prompts.text import check_text
from rlsys.records import PreferencePair, Prompt
from rlsys.replay.mixing import MixedPairs, text_pair


@registry.replay("corrections")
@dataclass(kw_only=True)
class Corrections(MixedPairs):
    """Adds one pair per line, in which the correction is preferred.

    The two responses of a pair differ only where the person saw a fault, so objectives that weight changed tokens can use the
    pairs. The file is read whenever a round begins to train. People may therefore continue to correct during the run; added
    lines are used from the next round on.
    """

    sources: ClassVar[tuple[str]] = ("corrections",)

    path: str
    """The file. An empty file adds no pairs."""
    run: str | None = None
    """Folder of the run whose responses were corrected. Prompts of lines with only an `id` are looked up in its journal. `null`
    is the current run, of which the earlier rounds are searched."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError(f"replay.path must name a file, got {self.path!r}")

    def check(self) -> None:
        """Check the file.

        Raises:
            ConfigError: the file, an image or the other run is missing, or a line is not as described.
        """
        lines = list(self._lines())
        if self.run is not None:
            self._asked(lines, None)

    def pairs(self, past: Past) -> Sequence[PreferencePair]:
        """The pairs of the file, in its order.

        Raises:
            ConfigError: a reason of `check`, or a line has an `id` of a prompt that was not asked.
        """
        lines = list(self._lines())
        asked = self._asked(lines, past)
        return _Pairs(lines, asked, root=Path(self.path).parent, margin=self.margin)

    def _lines(self) -> Iterator[_Line]:
        file = Path(self.path)
        if not file.is_file():
            raise ConfigError(f"replay.path must name a file, got {self.path!r}")
        with file.open("rb") as stored:
            for number, line in enumerate(stored, start=1):
                if line.strip():
                    yield _read_line(line, f"{file}:{number}", file.parent)

    def _asked(self, lines: Sequence[_Line], past: Past | None) -> dict[str, Prompt]:
        """The prompts of lines with only an `id`, by their ids."""
        wanted = {line.row["id"]: line.place for line in lines if not line.is_whole}
        if not wanted:
            return {}
        if self.run is None:
            found, where = past.prompts(wanted), f"in the {past.round} rounds before"
        else:
            folder = Path(self.run) / "journal"
            if not folder.is_dir():
                raise ConfigError(f"replay.run must name the folder of a run, got {self.run!r}")
            journal = Journal(folder, create=False)
            found, where = find_prompts(journal, journal.rounds(), wanted), f"in {self.run}"
        for name, place in wanted.items():
            if name not in found:
                raise ConfigError(f"{place}: no prompt {name!r} was asked {where}; give `prompt` and `image`")
        return found


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A line of the file that has passed all checks."""

    row: Mapping[str, Any]
    place: str
    """File and line number, for messages."""

    @property
    def is_whole(self) -> bool:
        """Whether the line holds its prompt, and not only an `id`."""
        return "prompt" in self.row or "turns" in self.row


class _Pairs(Sequence[PreferencePair]):
    """Pairs that are made on access, so that images are not kept in memory."""

    def __init__(self, lines: Sequence[_Line], asked: Mapping[str, Prompt], *, root: Path, margin: float) -> None:
        self._lines, self._asked, self._root, self._margin = lines, asked, root, margin

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, place: int) -> PreferencePair:
        line = self._lines[place]
        row = line.row
        prompt = _prompt(line, self._root) if line.is_whole else self._asked[row["id"]]
        return text_pair(prompt, row["correction"], row["response"], scores=(self._margin, 0.0), beta_scale=1.0)


def _read_line(stored: bytes, place: str, root: Path) -> _Line:
    row = read_object(stored, place)
    line = _Line(row=row, place=place)
    for key in ("response", "correction"):
        if not isinstance(row.get(key), str):
            raise ConfigError(f"{place}: every line must have a text `{key}`")
        check_text(row[key], place)
    if row["response"] == row["correction"]:
        raise ConfigError(f"{place}: the correction is the response as it was")
    if line.is_whole:
        read_turns(row, place)
        check_images(row, place, root)
    elif not isinstance(row.get("id"), str) or not row["id"]:
        raise ConfigError(f"{place}: every line must have `prompt`, `turns`, or the `id` of a prompt that was asked")
    return line


def _prompt(line: _Line, root: Path) -> Prompt:
    row = line.row
    name = row.get("id") or f"corrections/{line.place.rpartition(':')[2]}"
    return Prompt(id=name, turns=read_turns(row, line.place), images=read_images(row, line.place, root))
