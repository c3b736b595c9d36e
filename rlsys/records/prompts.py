"""What a policy or a judge is asked."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlsys.common.checksum import content_key
from rlsys.records.arrays import Pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """An image, equal to another if its pixels are.

    Raises:
        ValueError: `pixels` is not uint8 of shape [H, W, 3].
    """

    pixels: Pixels
    """uint8 [H, W, 3], RGB."""

    def __post_init__(self) -> None:
        if self.pixels.dtype != np.uint8 or self.pixels.ndim != 3 or self.pixels.shape[2] != 3:
            raise ValueError(f"Image.pixels must be uint8 [H, W, 3], got {self.pixels.dtype} {self.pixels.shape}")

    @cached_property
    def digest(self) -> str:
        """Content hash (128 bits, hex) over shape and pixels."""
        return content_key(repr(self.pixels.shape).encode(), np.ascontiguousarray(self.pixels)).hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Image) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    text: str
    token_ids: tuple[int, ...] = ()
    """Tokens of an assistant turn that an engine sampled, end-of-turn token included. They stand in the next prompt as they
    are: text that is tokenized again may give other tokens. Empty where only the text is known."""


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Prompt:
    """What the policy is asked."""

    id: str
    """Unique and stable: the same id is the same prompt in every run."""
    turns: tuple[Turn, ...]
    """The conversation so far; the last turn is the user's. Empty where a response is a plain text and no answer."""
    script: tuple[Turn, ...] = ()
    """User turns that come after the policy's responses, one after each (`conversation=scripted`)."""
    images: tuple[Image, ...] = ()
    """Shown before the first user turn's text, in order."""

    @property
    def question(self) -> str:
        """Text of the last turn."""
        return self.turns[-1].text
