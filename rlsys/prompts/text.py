"""The check that every source applies to the text of prompts."""

from __future__ import annotations

from rlsys.errors import ConfigError


def check_text(text: str, place: str) -> None:
    """
    Args:
        text: the text to check.
        place: where the text was found, for the error message.

    Raises:
        ConfigError: the text contains half of a surrogate pair, which JSON may hold and tokenizers refuse.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: text: {error}") from error
