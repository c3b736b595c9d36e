"""Preference data sets in the schemas they were released in: the rows, the prompt of a row, and which response it prefers.

mm_rlhf   arXiv 2502.10391: `prompt`, `chosen`, `rejected`, and `image` (path or list of paths) or `video` (a folder of
          frames); `is_tie`, `ls_factor` (1 - exp(-k * margin), as its training code reads it) and `rewards` ([chosen,
          rejected], as its reward model writes them) if there. A row is a pair; a question has a row for each of its pairs
rlhf_v    arXiv 2312.00849: `text` (a JSON string with `question`, `chosen`, `rejected`), `image` (bytes or path)
rlaif_v   arXiv 2405.17220: `question`, `chosen`, `rejected`, `image` (bytes or path); a question about one `image_path` has
          a row for each of its pairs
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlsys.errors import ConfigError
from rlsys.prompts.images import load_images, stored_paths
from rlsys.prompts.text import check_text
from rlsys.records import Image, Prompt, Turn

Row = Mapping[str, Any]
_NUM_FRAMES = 10
"""Frames of a video that MM-RLHF trains on, spread evenly."""
_FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


@dataclass(frozen=True, kw_only=True)
class Preferred:
    """The preference that a row states between two responses."""

    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None
    """Scores of the chosen and of the rejected response, if the row has them."""
    strength: float | None = None
    """`1 - exp(-k * margin)`, in [0, 1], if the row has only that."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """How a data set stores a pair."""

    question: Callable[[Row], Any]
    images: Callable[[Row, Path], tuple[Image, ...]]
    preferred: Callable[[Row], Preferred | None]
    """Reads the preference of a row; `None` if neither response is preferred."""
    columns: tuple[str, ...]
    """Columns that `preferred` reads, where they exist."""
    needed: tuple[str, ...] = ()
    """Columns that identify a question, where a data set has a row for each of the question's pairs; if empty, every row is a
    question.
    """
    others: tuple[str, ...] = ()
    """Further columns that identify a question, where they exist."""


def _mm_rlhf_question(row: Row) -> str:
    return row["prompt"].replace("<image>", "").replace("<video>", "").strip()


def _mm_rlhf_images(row: Row, root: Path) -> tuple[Image, ...]:
    return load_images(_frames(root / row["video"]) if row.get("video") else row.get("image"), root)


def _frames(folder: Path) -> list[Path]:
    frames = sorted(file for file in folder.iterdir() if file.suffix.lower() in _FRAME_SUFFIXES)
    if not frames:
        raise FileNotFoundError(f"no frames ({', '.join(sorted(_FRAME_SUFFIXES))}) in {folder}")
    if len(frames) <= _NUM_FRAMES:
        return frames
    step = (len(frames) - 1) / (_NUM_FRAMES - 1)
    return [frames[round(place * step)] for place in range(_NUM_FRAMES)]


def _mm_rlhf_preferred(row: Row) -> Preferred | None:
    if row.get("is_tie"):
        return None
    rewards, strength = row.get("rewards"), row.get("ls_factor")
    if strength is not None and not 0 <= strength <= 1:
        raise ValueError(f"ls_factor must be in [0, 1], got {strength}")
    scores = None
    if rewards is not None:
        chosen, rejected = map(float, rewards)
        scores = (chosen, rejected)
    return Preferred(chosen=row["chosen"], rejected=row["rejected"], scores=scores, strength=strength)


def _rlhf_v_text(row: Row) -> Row:
    text = row["text"]
    return json.loads(text) if isinstance(text, str) else text


def _plain_preferred(row: Row) -> Preferred:
    return Preferred(chosen=row["chosen"], rejected=row["rejected"])


def _plain_images(row: Row, root: Path) -> tuple[Image, ...]:
    return load_images(row["image"], root)


SCHEMAS: dict[str, Schema] = {
    "mm_rlhf": Schema(
        question=_mm_rlhf_question,
        images=_mm_rlhf_images,
        preferred=_mm_rlhf_preferred,
        columns=("chosen", "rejected", "is_tie", "rewards", "ls_factor"),
        needed=("prompt",),
        others=("image", "video"),
    ),
    "rlhf_v": Schema(
        question=lambda row: _rlhf_v_text(row)["question"],
        images=_plain_images,
        preferred=lambda row: _plain_preferred(_rlhf_v_text(row)),
        columns=("text",),
    ),
    "rlaif_v": Schema(
        question=lambda row: row["question"],
        images=_plain_images,
        preferred=_plain_preferred,
        columns=("chosen", "rejected"),
        needed=("question", "image_path"),
    ),
}


def check_options(section: str, schema: str, path: str) -> None:
    """
    Args:
        section: the group of the plug-in whose options these are, for the error message.
        schema: name of the schema.
        path: path of the data.

    Raises:
        ConfigError: there is no such schema, or no path is given.
    """
    if schema not in SCHEMAS:
        raise ConfigError(f"{section}.schema must be one of {', '.join(SCHEMAS)}, got {schema!r}")
    if not path:
        raise ConfigError(f"{section}.path must name a file or folder, got {path!r}")


class ReleasedData:
    """The rows of a data set. The rows are loaded at the first request for one; an image stays encoded until its row is
    requested.

    Every method raises `ConfigError` if the data is missing or a row does not have the schema; the message names the row.
    """

    def __init__(self, schema: str, path: str, *, images: str | None, section: str) -> None:
        """
        Args:
            schema: a key of `SCHEMAS`.
            path: a .jsonl, .json or .parquet file, a folder of parquet files, or a folder written by `Dataset.save_to_disk`.
            images: folder that relative image paths start from; the folder of the data if `None`.
            section: the group of the plug-in, for error messages.
        """
        self._name, self._schema = schema, SCHEMAS[schema]
        self._path, self._section = Path(path), section
        self._root = Path(images) if images else self._path if self._path.is_dir() else self._path.parent

    @cached_property
    def questions(self) -> Sequence[int]:
        """Rows whose question no earlier row has."""
        first = self._first_rows
        return [row for row in range(len(first)) if first[row] == row]

    @cached_property
    def pairs(self) -> Sequence[int]:
        """Rows that prefer one response to another; ties and pairs of equal texts are left out."""
        rows = self._rows
        kept = rows.select_columns([name for name in self._schema.columns if name in rows.column_names])
        found = []
        for place, row in enumerate(kept):
            preferred = self._preferred(row, place)
            if preferred is not None and preferred.chosen != preferred.rejected:
                found.append(place)
        return found

    def prompt(self, row: int) -> Prompt:
        """The prompt of a row. Its id is `<schema>/<row>`, with the first row that has the same question."""
        stored = self._rows[row]
        with self._at(row):
            text = self._schema.question(stored)
            images = self._schema.images(stored, self._root)
        self._check_text(text, "question", row)
        name = f"{self._name}/{self._first_rows[row]}"
        return Prompt(id=name, turns=(Turn(role="user", text=text),), images=images)

    def preferred(self, row: int) -> Preferred:
        """The preference that a row among `pairs` states."""
        return self._preferred(self._rows[row], row)

    def check_files(self) -> None:
        """Check that all images and videos that rows name by a path exist. They are not opened."""
        rows = self._rows
        for name in ("image", "video"):
            kind = str(rows.features.get(name))
            if "string" not in kind or "binary" in kind:  # the images are stored in the rows themselves
                continue
            for place, stored in enumerate(rows[name]):
                for path in stored_paths(stored):
                    if not (self._root / path).exists():
                        where = self._root / path
                        raise ConfigError(f"{self._path}, row {place}: {name}: there is no {str(where)!r}")

    def _preferred(self, stored: Row, row: int) -> Preferred | None:
        with self._at(row):
            found = self._schema.preferred(stored)
        if found is not None:
            self._check_text(found.chosen, "chosen response", row)
            self._check_text(found.rejected, "rejected response", row)
        return found

    def _check_text(self, text: Any, what: str, row: int) -> None:
        if not isinstance(text, str):
            raise ConfigError(f"{self._path}, row {row}: the {what} must be text, got {text!r}")
        check_text(text, f"{self._path}, row {row}")

    @contextmanager
    def _at(self, row: int) -> Iterator[None]:
        """Name the row in the message of an error that is raised inside the block."""
        try:
            yield
        except OSError as error:
            raise ConfigError(f"{self._path}, row {row}: image: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ConfigError(f"{self._path}, row {row}: not of schema {self._name}: {error!r}") from error

    @cached_property
    def _rows(self) -> Any:
        return _load_rows(self._path, self._section)

    @cached_property
    def _first_rows(self) -> Sequence[int]:
        """For every row, the first row with the same question."""
        rows, schema = self._rows, self._schema
        if not schema.needed or not {*schema.needed} <= {*rows.column_names}:
            return range(len(rows))
        columns = [rows[name] for name in (*schema.needed, *schema.others) if name in rows.column_names]
        first: dict[str, int] = {}
        return [first.setdefault(repr(values), place) for place, values in enumerate(zip(*columns, strict=True))]


def _load_rows(path: Path, section: str) -> Any:
    """An indexable table of rows; images stay encoded until they are requested."""
    # This library is heavy, so it is imported only where such data sets are read.
    import datasets

    if not path.exists():
        raise ConfigError(f"{section}.path must name a file or folder, got {str(path)!r}")
    if path.is_file():
        if path.suffix not in _LOADERS:
            raise ConfigError(f"{section}.path must end in one of {', '.join(_LOADERS)}, got {str(path)!r}")
        table = datasets.load_dataset(_LOADERS[path.suffix], data_files=str(path), split="train")
    elif (path / "state.json").exists():
        table = datasets.load_from_disk(str(path))
    else:
        files = sorted(str(file) for file in path.rglob("*.parquet"))
        if not files:
            raise ConfigError(f"{section}.path is a folder without parquet files: {str(path)!r}")
        table = datasets.load_dataset("parquet", data_files=files, split="train")
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table
