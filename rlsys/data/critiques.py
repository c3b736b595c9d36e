"""Pairs of judged responses from a file of JSON lines, for a critique reward model.

A row holds a `prompt` (the user's text, or messages), and the `chosen` and the `rejected` response. It may hold a critique of
each response, `chosen_critique` and `rejected_critique`; without them, the model only learns to score. It may also hold `image`
or `images`, paths relative to the file.
    {"prompt": "How many cats?", "chosen": "Two.", "rejected": "Nine.",
     "chosen_critique": "Right.", "rejected_critique": "Wrong."}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys import registry
from rlsys.asking.prompts import judge_prompt
from rlsys.data.json_lines import Images, JsonLines, Row, prompt_of, text_of
from rlsys.errors import ConfigError
from rlsys.records import CritiquePair

_SLOTS = ("{question}", "{answer}")


@registry.data("critiques")
@dataclass(kw_only=True)
class JsonlCritiques(JsonLines):
    """Judged pairs in the order of the file."""

    produces: ClassVar[type] = CritiquePair

    template: str = ""
    """The judge's user turn, with the slots `{question}` and `{answer}`. It must be the same as `feedback.template` of the runs
    that will use the model as judge."""

    def __post_init__(self) -> None:
        super().__post_init__()
        missing = [slot for slot in _SLOTS if slot not in self.template]
        if missing:
            raise ConfigError(f"data.template must contain {' and '.join(missing)}, got {self.template!r}")

    def example(self, row: Row, place: str, images: Images) -> CritiquePair:
        """See `JsonLines.example`."""
        prompt = prompt_of(row, place, images)
        chosen, rejected = (text_of(row, key, place) for key in ("chosen", "rejected"))
        keys = ("chosen_critique", "rejected_critique")
        if (keys[0] in row) != (keys[1] in row):
            raise ConfigError(f"{place}: a row must have both {' and '.join(keys)}, or neither")
        critiques = [text_of(row, key, place) for key in keys] if keys[0] in row else ["", ""]
        return CritiquePair(
            chosen_prompt=judge_prompt(self.template, prompt, chosen),
            rejected_prompt=judge_prompt(self.template, prompt, rejected),
            chosen_critique=critiques[0],
            rejected_critique=critiques[1],
        )
