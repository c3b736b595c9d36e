"""The prompts of a policy or a judge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rlsys.common.checksum import content_key
from rlsys.records.arrays import Pixels


@dataclass(frozen=True, kw_only=True, eq=False)
class Image:
    """An image; two images are equal if their pixels are.

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
    """Tokens of an assistant turn that an engine sampled, including the end-of-turn token. The next prompt contains exactly
    these tokens, because tokenizing the text again may give other tokens. Empty where only the text is known.
    """


@dataclass(frozen=True, slots=True, weakref_slot=True, kw_only=True)
class Prompt:
    """A prompt for the policy or the judge."""

    id: str
    """Unique and stable: the same id is the same prompt in every run."""
    turns: tuple[Turn, ...]
    """The conversation so far; the last turn is the user's. Empty where the response is plain text that replies to nothing."""
    script: tuple[Turn, ...] = ()
    """User turns that follow the policy's responses, one after each (`conversation=scripted`)."""
    images: tuple[Image, ...] = ()
    """Images shown before the text of the first user turn, in order."""

    @property
    def question(self) -> str:
        """Text of the last turn."""
        return self.turns[-1].text
