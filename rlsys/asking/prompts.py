"""Prompts of a judge: text with places, which are filled in one pass."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any

from rlsys.errors import ConfigError
from rlsys.records import Prompt, Turn

_PLACE = re.compile(r"\{([a-z_]+)\}")


def check_template(name: str, template: str, *places: str) -> None:
    """
    Raises:
        ConfigError: the template lacks one of its places.
    """
    missing = [f"{{{place}}}" for place in places if f"{{{place}}}" not in template]
    if missing:
        raise ConfigError(f"{name} must contain {' and '.join(missing)}, got {template!r}")


def check_at_least(section: str, options: Any, **lowest: float) -> None:
    """
    Raises:
        ConfigError: an option is below its lowest value, or not finite.
    """
    for name, low in lowest.items():
        value = getattr(options, name)
        if not (math.isfinite(value) and value >= low):
            raise ConfigError(f"{section}.{name} must be at least {low}, got {value}")


def filled(template: str, values: Mapping[str, str]) -> str:
    """The template with its places filled in one pass, so that a value which itself spells a place is shown as it is; other
    braces stay.
    """
    return _PLACE.sub(lambda place: values.get(place.group(1), place.group()), template)


def question_of(prompt: Prompt) -> str:
    """What a judge is shown as the question: the last turn, or a line per turn of a conversation of several."""
    if len(prompt.turns) == 1:
        return prompt.question
    return "\n".join(f"{turn.role}: {turn.text}" for turn in prompt.turns)


def about(prompt: Prompt, what: str, text: str, *responses: str) -> Prompt:
    """A prompt of one user turn with the same images.

    Args:
        what: part of the new prompt's id, which also depends on the responses that the text shows, and not on its wording.
    """
    shown = "\0".join(responses).encode("utf-8", "surrogatepass")
    digest = hashlib.sha256(shown).hexdigest()[:16]
    return Prompt(id=f"{prompt.id}/{what}/{digest}", turns=(Turn(role="user", text=text),), images=prompt.images)


def judge_prompt(template: str, prompt: Prompt, answer: str) -> Prompt:
    """What a judge is asked about a response.

    Training a judge and asking it must both go through here, so that it sees in use what it saw in training.

    Args:
        template: text with the places `{question}` and `{answer}`.
    """
    return about(prompt, "judge", filled(template, {"question": question_of(prompt), "answer": answer}), answer)
