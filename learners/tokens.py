"""From records to token ids and image tensors, through the checkpoint's own processor.

S tokens of a prompt (image placeholders expanded), T tokens of an answer.
"""

from __future__ import annotations

import functools
import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsys.errors import ConfigError, RlsysError
from rlsys.records import Image, Prompt

_MIB = 1 << 20
_RENDERED_PROMPTS = 8192
"""Rendered chat templates kept; prompts of one kind share a few questions."""
_EXPANSIONS = 256
"""Placeholder texts kept as tokens; pictures of one size share one."""


class RefusedRecord(RlsysError, ValueError):
    """A record that cannot be trained on; the message names the token and its place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTensors:
    """One picture as the model takes it."""

    digest: str
    values: dict[str, torch.Tensor]
    """Keyword arguments of the model's forward; pictures are joined along the first axis."""

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())


class Processor:
    """Chat template, tokenizer and image processor of a checkpoint, with a cache of processed pictures."""

    def __init__(self, directory: Path, *, cache_mib: int = 256) -> None:
        """
        Args:
            directory: Hugging Face folder; without an image processor it is a text model.
            cache_mib: bound on the processed pictures kept.
        """
        from transformers import AutoProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        loaded = AutoProcessor.from_pretrained(directory)
        self._processor = loaded if getattr(loaded, "image_processor", None) is not None else None
        self._cache: OrderedDict[str, ImageTensors] = OrderedDict()
        self._cache_bytes = 0
        self._cache_limit = cache_mib * _MIB
        self._ends = _end_tokens(directory) | {self.tokenizer.eos_token_id}
        self._special = _special_tokens(self.tokenizer, directory)
        self._render = functools.lru_cache(_RENDERED_PROMPTS)(self._render_uncached)
        self._tokens_of = functools.lru_cache(_EXPANSIONS)(self._tokens_of_uncached)

    @property
    def has_images(self) -> bool:
        """Whether the checkpoint takes pictures."""
        return self._processor is not None

    def token_id(self, token: str) -> int:
        """Id of a token by name.

        Raises:
            ConfigError: the tokenizer does not have it.
        """
        found = self.tokenizer.convert_tokens_to_ids(token)
        if found is None or found == self.tokenizer.unk_token_id:
            raise ConfigError(f"the tokenizer has no token {token!r}")
        return found

    def images(self, images: Sequence[Image]) -> list[ImageTensors]:
        """Processed pictures, in order; those not in the cache go through the image processor in one call.

        Raises:
            RefusedRecord: the checkpoint takes no pictures.
        """
        if images and self._processor is None:
            raise RefusedRecord(f"{len(images)} images for a checkpoint without an image processor")
        found: dict[str, ImageTensors] = {}
        missing: dict[str, Image] = {}
        for image in images:
            if image.digest in self._cache:
                self._cache.move_to_end(image.digest)
                found[image.digest] = self._cache[image.digest]
            else:
                missing[image.digest] = image
        if missing:
            for processed in self._process(missing):
                found[processed.digest] = processed
                self._remember(processed)
        return [found[image.digest] for image in images]

    def prompt_ids(self, prompt: Prompt) -> np.ndarray:
        """int32 [S]: chat template applied up to where the answer begins, image placeholders expanded."""
        turns = tuple((turn.role, turn.text) for turn in prompt.turns)
        pieces = self._render(turns, len(prompt.images))
        ids: list[int] = []
        expansions = [self._expansion(tensors) for tensors in self.images(prompt.images)]
        for number, piece in enumerate(pieces):
            ids += piece
            if number < len(expansions):
                ids += expansions[number]
        return np.array(ids, dtype=np.int32)

    def response_ids(self, text: str, end: int | None = None) -> np.ndarray:
        """int32 [T]: the text's tokens and an ending token, end-of-sequence unless another is given.

        Raises:
            RefusedRecord: the text holds a special token.
        """
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.check_answer(ids, text)
        return np.array([*ids, self.tokenizer.eos_token_id if end is None else end], dtype=np.int32)

    def check_answer(self, token_ids: Sequence[int], source: str) -> None:
        """Refuse special tokens inside an answer: a placeholder of an image that is not there ends every forward pass.

        Raises:
            RefusedRecord: a special token stands anywhere but as the ending token at the last place, or there
                is no token.
        """
        last = len(token_ids) - 1
        for place, token in enumerate(token_ids):
            token = int(token)
            if token in self._special and not (place == last and token in self._ends):
                name = self.tokenizer.convert_ids_to_tokens(token)
                raise RefusedRecord(f"special token {name!r} ({token}) at place {place} of the answer {source!r}")

    def _process(self, images: dict[str, Image]) -> list[ImageTensors]:
        output = self._processor.image_processor(
            # Decoded frames are read-only views, which torch does not take.
            images=[image.pixels.copy() for image in images.values()],
            return_tensors="pt",
            input_data_format="channels_last",
        )
        values = {name: value for name, value in output.items() if isinstance(value, torch.Tensor)}
        grids = values.get("image_grid_thw")
        lengths = grids.prod(-1).tolist() if grids is not None else [1] * len(images)
        split = {name: value.split(lengths if name == "pixel_values" else 1) for name, value in values.items()}
        return [
            ImageTensors(digest=digest, values={name: parts[i].clone() for name, parts in split.items()})
            for i, digest in enumerate(images)
        ]

    def _remember(self, tensors: ImageTensors) -> None:
        self._cache[tensors.digest] = tensors
        self._cache_bytes += tensors.num_bytes
        while self._cache_bytes > self._cache_limit and len(self._cache) > 1:
            self._cache_bytes -= self._cache.popitem(last=False)[1].num_bytes

    def _expansion(self, tensors: ImageTensors) -> list[int]:
        return self._tokens_of(self._processor.replace_image_token(tensors.values, 0))

    def _tokens_of_uncached(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _render_uncached(self, turns: tuple[tuple[str, str], ...], num_images: int) -> list[list[int]]:
        """Token ids of the rendered prompt, cut where its image placeholders stand."""
        if self._processor is not None:
            renderer, conversation = self._processor, messages(turns, num_images)
        else:
            renderer, conversation = self.tokenizer, [{"role": role, "content": text} for role, text in turns]
        text = renderer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces: list[list[int]] = [[]]
        placeholder = self.token_id(self._processor.image_token) if num_images else None
        for token in ids:
            if token == placeholder:
                pieces.append([])
            else:
                pieces[-1].append(token)
        if len(pieces) != num_images + 1:
            raise RefusedRecord(f"{num_images} images, but the chat template shows {len(pieces) - 1}: {text!r}")
        return pieces


def messages(turns: Sequence[tuple[str, str]], num_images: int) -> list[dict[str, Any]]:
    """A conversation as the templates of vision-language models take it: pictures before the first user turn's text."""
    result: list[dict[str, Any]] = []
    waiting = num_images
    for role, text in turns:
        parts: list[dict[str, str]] = []
        if role == "user":
            parts = [{"type": "image"}] * waiting
            waiting = 0
        result.append({"role": role, "content": [*parts, {"type": "text", "text": text}]})
    return result


def _end_tokens(directory: Path) -> set[int]:
    path = Path(directory) / "generation_config.json"
    ends = json.loads(path.read_text()).get("eos_token_id") if path.exists() else None
    return set(ends) if isinstance(ends, list) else {ends} - {None}


def _special_tokens(tokenizer: Any, directory: Path) -> set[int]:
    config = json.loads((Path(directory) / "config.json").read_text())
    named = {value for key, value in config.items() if key.endswith("_token_id") and isinstance(value, int)}
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return set(tokenizer.all_special_ids) | added | named
