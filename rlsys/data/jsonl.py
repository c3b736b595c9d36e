"""Demonstrations from a file of JSON lines.

A row holds either a `prompt` (the user's text, or messages) and the `response` to imitate, or `messages`. The last of the
messages must be the assistant's, and it alone carries loss. A row may also hold `image` or `images`, paths relative to the
file.
    {"prompt": "What is on the sofa?", "response": "A cat.", "image": "images/sofa.png"}
    {"messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello."}]}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rlsys import registry
from rlsys.data.base import demonstration
from rlsys.data.json_lines import Images, JsonLines, Row, prompt_of, text_of, turns_of
from rlsys.errors import ConfigError
from rlsys.records import Demonstration, Prompt


@registry.data("jsonl")
@dataclass(kw_only=True)
class JsonlDemonstrations(JsonLines):
    """Demonstrations in the order of the file."""

    produces: ClassVar[type] = Demonstration

    def example(self, row: Row, place: str, images: Images) -> Demonstration:
        """See `JsonLines.example`."""
        if ("messages" in row) == ("prompt" in row):
            raise ConfigError(f"{place}: a row must have either messages, or a prompt and a response")
        if "prompt" in row:
            return demonstration(prompt_of(row, place, images), text_of(row, "response", place))
        turns = turns_of(row["messages"], "messages", place)
        if [turn.role for turn in turns[-2:]] != ["user", "assistant"] or not turns[-1].text:
            raise ConfigError(f"{place}: messages must end with the user's and the assistant's, the latter not empty")
        return demonstration(Prompt(id=place, turns=turns[:-1], images=images(row, place)), turns[-1].text)
