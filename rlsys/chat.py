"""Chat template and tokenizer of a checkpoint. Engines and learner both render prompts by this module, so that they see the
same tokens."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlsys.common.lru import ByteCache
from rlsys.errors import ConfigError
from rlsys.records import Prompt

_RENDERED_BYTES = 16 << 20
"""Size of the cache of rendered conversations. The prompts of a task share a few questions, so most of them hit the cache."""
_MARK = "\u2063sampled\u2063"
"""Placeholder in the rendered text for an assistant turn whose sampled tokens are known."""
_TOKEN_BYTES = 40
"""Memory of one Python integer in a tuple."""


class Chat:
    """Turns conversations into tokens as a Hugging Face folder prescribes.

    Attributes:
        tokenizer: the tokenizer of transformers.
        processor: the processor of transformers; `None` if the checkpoint takes no images.
        ends: ids of the tokens that end a response: end-of-sequence, and those of the generation configuration.
        special: ids that must not occur inside a response: added special tokens, and the tokens that the model's
            configuration names (placeholders of images and videos, beginning and end of vision, padding, ...).
    """

    def __init__(self, folder: Path) -> None:
        from transformers import AutoProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        loaded = AutoProcessor.from_pretrained(folder)
        self.processor = loaded if getattr(loaded, "image_processor", None) is not None else None
        self.ends = _end_tokens(folder) | {self.tokenizer.eos_token_id}
        self.special = _special_tokens(self.tokenizer, folder)
        self._spellings = _spellings(self.tokenizer)
        self._rendered: ByteCache[tuple, tuple[int, ...]] = ByteCache(_RENDERED_BYTES)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        """Token ids up to the position where the response begins, with one placeholder per image before the text of the first
        user turn.

        A special token that is spelled out in a message is tokenized as plain text, whoever wrote the message. Otherwise a
        placeholder without an image would crash the engine, and a `<score>` could be forged.

        A prompt without turns is the beginning of a plain text: the beginning-of-sequence token, or, where a tokenizer has
        none, the end-of-sequence token, after which another text begins.

        Raises:
            ConfigError: the prompt has images and the checkpoint takes none.
        """
        if prompt.images and self.processor is None:
            raise ConfigError(f"prompt {prompt.id!r} has {len(prompt.images)} images, this checkpoint takes none")
        if not prompt.turns:
            start = self.tokenizer.bos_token_id
            return (self.tokenizer.eos_token_id if start is None else start,)
        key = tuple((turn.role, turn.text, turn.token_ids) for turn in prompt.turns), len(prompt.images)
        found = self._rendered.get(key)
        if found is None:
            found = self._render(*key)
            self._rendered.put(key, found, num_bytes=_TOKEN_BYTES * len(found))
        return found

    def token_id(self, token: str) -> int:
        """The id of a token, by its name.

        Raises:
            ConfigError: the tokenizer does not have this token.
        """
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer has no token {token!r}")
        return found

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text that is not a message. Special tokens in the text are recognized as such."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def texts(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """The decoded texts, without special tokens."""
        return self.tokenizer.batch_decode(token_ids, skip_special_tokens=True)

    def candidate_id(self, text: str) -> int | None:
        """The id of the single token that spells a text; `None` if the text takes several tokens or is unknown."""
        found = self.text_ids(text)
        return found[0] if len(found) == 1 and found[0] != self.tokenizer.unk_token_id else None

    def _render(self, turns: tuple[tuple[str, str, tuple[int, ...]], ...], num_images: int) -> tuple[int, ...]:
        renderer: Any = self.processor or self.tokenizer
        conversation: list[dict[str, Any]] = []
        waiting = num_images
        sampled: list[tuple[int, ...]] = []
        for role, text, token_ids in turns:
            content: Any = self._as_text(text)
            if token_ids:
                content = _MARK
                sampled.append(token_ids)
            if self.processor is not None:
                parts = [{"type": "text", "text": content}]
                if role == "user":
                    parts, waiting = [{"type": "image"}] * waiting + parts, 0
                content = parts
            conversation.append({"role": role, "content": content})
        text = renderer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        if not sampled:
            return tuple(self.text_ids(text))
        return self._around(text.split(_MARK), sampled)

    def _around(self, pieces: Sequence[str], sampled: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """The tokens of a rendered conversation, with the sampled tokens in place of its assistant turns.

        Args:
            pieces: the rendered text between the assistant turns, one more than there are turns.
            sampled: the sampled tokens of every assistant turn.

        Raises:
            ConfigError: the chat template does not show every assistant turn exactly once and unchanged.
        """
        if len(pieces) != len(sampled) + 1:
            raise ConfigError(
                f"the chat template shows {len(pieces) - 1} of {len(sampled)} assistant turns: "
                "conversations of several turns need one that shows them all"
            )
        ids = list(self.text_ids(pieces[0]))
        for turn, piece in zip(sampled, pieces[1:], strict=True):
            after = self.text_ids(piece)
            ids += turn
            # The template ends the turn with an end token. The sampled tokens have it too, unless the response was cut off.
            ids += after[1:] if after and turn[-1] in self.ends and after[0] == turn[-1] else after
        return tuple(ids)

    def _as_text(self, text: str) -> str:
        return self._spellings.sub(lambda found: f"{found.group()[0]} {found.group()[1:]}", text)


def _spellings(tokenizer: Any) -> re.Pattern[str]:
    names = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    longest_first = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _end_tokens(folder: Path) -> set[int]:
    path = Path(folder) / "generation_config.json"
    found = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    return set(found) if isinstance(found, list) else {found} - {None}


def _special_tokens(tokenizer: Any, folder: Path) -> set[int]:
    config = json.loads((Path(folder) / "config.json").read_text())
    named = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set(tokenizer.all_special_ids) | added | named
