"""What every source asks of a prompt's words."""

from __future__ import annotations

from rlsys.errors import ConfigError


def check_text(text: str, place: str) -> None:
    """
    Args:
        place: where the text stands, for the message.

    Raises:
        ConfigError: half of a surrogate pair stands in it: JSON may hold one, tokenizers take none.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{place}: text: {error}") from error
