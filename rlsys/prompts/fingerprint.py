"""A fingerprint that identifies prompts by their content, independent of where they are stored."""

from __future__ import annotations

from collections.abc import Iterable

from rlsys.common.checksum import content_key
from rlsys.records import Prompt


class Fingerprint:
    """A hash that is updated with every prompt added. The order counts.

    fingerprint = Fingerprint()
    fingerprint.add(prompt)
    fingerprint.hex                # 128 bits
    """

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        self._key = b""
        for prompt in prompts:
            self.add(prompt)

    def add(self, prompt: Prompt) -> None:
        """Add a prompt: its id, its turns, and the pixels of its images."""
        turns = [(turn.role, turn.text) for turn in prompt.turns]
        asked = repr((prompt.id, turns, [image.digest for image in prompt.images]))
        self._key = content_key(self._key, asked.encode("utf-8", "surrogatepass"))

    @property
    def hex(self) -> str:
        """The fingerprint, in hex, of the prompts added so far."""
        return self._key.hex()
