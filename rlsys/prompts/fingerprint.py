"""By what prompts are known again: by what they ask, not by where it is stored."""

from __future__ import annotations

from collections.abc import Iterable

from rlsys.common.checksum import content_key
from rlsys.records import Prompt


class Fingerprint:
    """Grows with every prompt that is added. The order counts.

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
        """Of the prompts so far."""
        return self._key.hex()
