"""Prompts from preference data sets in the schemas they were released in (`released.py`). Their responses are not used: the
policy samples its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from rlsys import registry
from rlsys.errors import PromptsExhausted
from rlsys.prompts.released import ReleasedData, check_options
from rlsys.records import Prompt


@registry.prompts("datasets")
@dataclass(kw_only=True)
class DatasetPrompts:
    """One prompt per row, or per question where rows are pairs, in the order of the data set. Ids are `<schema>/<row>`, with
    the first row of the question.
    """

    schema: str
    """`mm_rlhf`, `rlhf_v` or `rlaif_v`."""
    path: str
    """A .jsonl, .json or .parquet file, a folder of parquet files, or a folder written by `Dataset.save_to_disk`."""
    images: str | None = None
    """Folder that relative image paths start from; `null` is the folder of the data."""

    def __post_init__(self) -> None:
        check_options("prompts", self.schema, self.path)

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """
        Raises:
            ConfigError: the data is missing, or a row does not have the schema; the message names the row.
            PromptsExhausted: the data ends before `start + count`.
        """
        questions = self._data.questions
        if start + count > len(questions):
            raise PromptsExhausted(f"{self.path} has {len(questions)} prompts, {start + count} were asked for")
        yield from map(self._data.prompt, questions[start : start + count])

    @cached_property
    def _data(self) -> ReleasedData:
        return ReleasedData(self.schema, self.path, images=self.images, section="prompts")
