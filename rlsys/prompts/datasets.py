"""Prompts from preference data sets in the schemas they were released in. Their answers are not used: the policy
writes its own.

mm_rlhf   arXiv 2502.10391: `prompt`, and `image` (path or list of paths) or `video` (a folder of frames); a row is a pair
          of answers, and a question is asked once, however many rows it has
rlhf_v    arXiv 2312.00849: `text` (a JSON string with `question`), `image` (bytes or path)
rlaif_v   arXiv 2405.17220: `question`, `image` (bytes or path); a question about one `image_path` is asked once
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rlsys import registry
from rlsys.errors import ConfigError, PromptsExhausted
from rlsys.prompts.images import load_images
from rlsys.prompts.text import check_text
from rlsys.records import Image, Prompt, Turn

Row = Mapping[str, Any]
_NUM_FRAMES = 10
"""Frames of a video that MM-RLHF trains on, spread evenly."""
_FRAME_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


def _mm_rlhf(row: Row, root: Path) -> tuple[str, tuple[Image, ...]]:
    text = row["prompt"].replace("<image>", "").replace("<video>", "").strip()
    if row.get("video"):
        return text, load_images(_frames(root / row["video"]), root)
    return text, load_images(row.get("image"), root)


def _frames(folder: Path) -> list[Path]:
    frames = sorted(file for file in folder.iterdir() if file.suffix.lower() in _FRAME_SUFFIXES)
    if not frames:
        raise FileNotFoundError(f"no frames ({', '.join(sorted(_FRAME_SUFFIXES))}) in {folder}")
    if len(frames) <= _NUM_FRAMES:
        return frames
    step = (len(frames) - 1) / (_NUM_FRAMES - 1)
    return [frames[round(place * step)] for place in range(_NUM_FRAMES)]


def _rlhf_v(row: Row, root: Path) -> tuple[str, tuple[Image, ...]]:
    text = row["text"]
    return (json.loads(text) if isinstance(text, str) else text)["question"], load_images(row["image"], root)


def _rlaif_v(row: Row, root: Path) -> tuple[str, tuple[Image, ...]]:
    return row["question"], load_images(row["image"], root)


SCHEMAS: dict[str, Callable[[Row, Path], tuple[str, tuple[Image, ...]]]] = {
    "mm_rlhf": _mm_rlhf,
    "rlhf_v": _rlhf_v,
    "rlaif_v": _rlaif_v,
}

_TELLS_APART: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mm_rlhf": (("prompt",), ("image", "video")),
    "rlaif_v": (("question", "image_path"), ()),
}
"""Columns by which a question is known, of schemas that repeat it in a row for each of its pairs: those that must be there,
and those that may.
"""


@registry.prompts("datasets")
@dataclass(kw_only=True)
class DatasetPrompts:
    """One prompt per row, or per question where rows are pairs, in the order of the data set; ids are `<schema>/<row>`, the
    first of a question's rows.
    """

    schema: str
    """`mm_rlhf`, `rlhf_v` or `rlaif_v`."""
    path: str
    """A .jsonl, .json or .parquet file, a folder of parquet files, or a folder written by `Dataset.save_to_disk`."""
    images: str | None = None
    """Folder that relative image paths start from; that of the data if not given."""

    def __post_init__(self) -> None:
        if self.schema not in SCHEMAS:
            raise ConfigError(f"prompts.schema must be one of {', '.join(SCHEMAS)}, got {self.schema!r}")
        if not self.path:
            raise ConfigError(f"prompts.path must name a file or folder, got {self.path!r}")

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """
        Raises:
            ConfigError: the data is missing, or a row does not have the schema; the message names the row.
            PromptsExhausted: the data ends before `start + count`.
        """
        rows, places = self._rows, self._places
        if start + count > len(places):
            raise PromptsExhausted(f"{self.path} has {len(places)} prompts, {start + count} were asked for")
        root = Path(self.images) if self.images else _folder(Path(self.path))
        for place in places[start : start + count]:
            try:
                text, images = SCHEMAS[self.schema](rows[place], root)
            except OSError as error:
                raise ConfigError(f"{self.path}, row {place}: image: {error}") from error
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ConfigError(f"{self.path}, row {place}: not of schema {self.schema}: {error!r}") from error
            if not isinstance(text, str):
                raise ConfigError(f"{self.path}, row {place}: the question must be text, got {text!r}")
            check_text(text, f"{self.path}, row {place}")
            yield Prompt(id=f"{self.schema}/{place}", turns=(Turn(role="user", text=text),), images=images)

    @cached_property
    def _rows(self) -> Any:
        return _load_rows(Path(self.path))

    @cached_property
    def _places(self) -> Sequence[int]:
        """Rows that ask what no row before them has asked."""
        rows = self._rows
        needed, others = _TELLS_APART.get(self.schema, ((), ()))
        if not needed or not {*needed} <= {*rows.column_names}:
            return range(len(rows))
        columns = [rows[name] for name in (*needed, *others) if name in rows.column_names]
        first: dict[str, int] = {}
        for place, values in enumerate(zip(*columns, strict=True)):
            first.setdefault(repr(values), place)
        return list(first.values())


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _load_rows(path: Path) -> Any:
    """An indexable table of rows; images stay encoded until they are asked for."""
    # Imported here: the library is heavy, and only this source needs it.
    import datasets

    if not path.exists():
        raise ConfigError(f"prompts.path must name a file or folder, got {str(path)!r}")
    if path.is_file():
        if path.suffix not in _LOADERS:
            raise ConfigError(f"prompts.path must end in one of {', '.join(_LOADERS)}, got {str(path)!r}")
        table = datasets.load_dataset(_LOADERS[path.suffix], data_files=str(path), split="train")
    elif (path / "state.json").exists():
        table = datasets.load_from_disk(str(path))
    else:
        files = sorted(str(file) for file in path.rglob("*.parquet"))
        if not files:
            raise ConfigError(f"prompts.path is a folder without parquet files: {str(path)!r}")
        table = datasets.load_dataset("parquet", data_files=files, split="train")
    for name, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(name, datasets.Image(decode=False))
    return table
