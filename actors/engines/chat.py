"""From a prompt record to the tokens an engine is given: chat template applied, one placeholder per image."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from rlsys.errors import EngineError
from rlsys.records import Prompt

_RENDERED = 8192
"""Rendered conversations kept; the prompts of a task share a few questions."""


class Chat:
    """Chat template and tokenizer of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        self._processor = processor if getattr(processor, "image_processor", None) is not None else None
        self._render = functools.lru_cache(_RENDERED)(self._render_uncached)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Token ids up to where the answer begins; image placeholders are not expanded.

        Raises:
            EngineError: the prompt has images and the checkpoint takes none.
        """
        if prompt.images and self._processor is None:
            raise EngineError(f"prompt {prompt.id!r} has {len(prompt.images)} images, this checkpoint takes none")
        return list(self._render(tuple((turn.role, turn.text) for turn in prompt.turns), len(prompt.images)))

    def token_id(self, token: str) -> int:
        """Id of a token by name.

        Raises:
            EngineError: the tokenizer does not have it.
        """
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise EngineError(f"the tokenizer has no token {token!r}")
        return found

    def texts(self, token_ids: list[list[int]]) -> list[str]:
        """Decoded without special tokens."""
        return self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)

    def _render_uncached(self, turns: tuple[tuple[str, str], ...], num_images: int) -> tuple[int, ...]:
        renderer: Any = self.tokenizer
        conversation: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in turns]
        if self._processor is not None:
            renderer, waiting = self._processor, num_images
            for message in conversation:
                parts = [{"type": "text", "text": message["content"]}]
                if message["role"] == "user":
                    parts, waiting = [{"type": "image"}] * waiting + parts, 0
                message["content"] = parts
        text = renderer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def special_tokens(chat: Chat, folder: Path) -> set[int]:
    """Tokens that must not stand inside an answer: added special tokens, and those the model's configuration names
    (placeholders of images and videos, beginning and end of vision, padding, ...)."""
    config = json.loads((folder / "config.json").read_text())
    named = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    added = {number for number, token in chat.tokenizer.added_tokens_decoder.items() if token.special}
    return set(chat.tokenizer.all_special_ids) | added | named


def end_tokens(chat: Chat, folder: Path) -> set[int]:
    """Tokens that end an answer: the tokenizer's end-of-sequence and those of the generation configuration."""
    path = folder / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    listed = found if isinstance(found, list) else [found]
    return {number for number in [*listed, chat.tokenizer.eos_token_id] if number is not None}
