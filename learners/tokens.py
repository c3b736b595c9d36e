"""Turns records into token ids and image tensors, with the checkpoint's own processor.

Letters in shapes: S tokens of a prompt (image placeholders expanded), T tokens of a response.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsys.chat import Chat
from rlsys.common.lru import ByteCache
from rlsys.errors import RlsysError
from rlsys.records import Image, Prompt

_MIB = 1 << 20
_EXPANSIONS = 256
"""Number of placeholder texts whose tokens are kept; images of the same size share one text."""


class RefusedRecord(RlsysError, ValueError):
    """A record that cannot be trained on; the message names the token and its place."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTensors:
    """One image as input of the model."""

    digest: str
    values: dict[str, torch.Tensor]
    """Keyword arguments of the model's forward; several images are concatenated along the first axis."""

    @property
    def num_bytes(self) -> int:
        return sum(value.numel() * value.element_size() for value in self.values.values())


class Processor:
    """Chat template, tokenizer and image processor of a checkpoint, with a cache of processed images."""

    def __init__(self, directory: Path, *, cache_mib: int = 256) -> None:
        """
        Args:
            directory: Hugging Face folder; one without an image processor is taken as a text model.
            cache_mib: most memory for processed images that are kept, MiB.
        """
        self._chat = Chat(directory)
        self.tokenizer = self._chat.tokenizer
        self._processor = self._chat.processor
        self._placeholders = _placeholders(self._processor, self.tokenizer)
        self._cache: ByteCache[str, ImageTensors] = ByteCache(cache_mib * _MIB)
        self._tokens_of = functools.lru_cache(_EXPANSIONS)(self._chat.text_ids)

    @property
    def has_images(self) -> bool:
        """Whether the checkpoint takes images."""
        return self._processor is not None

    def token_id(self, token: str) -> int:
        """Id of a token by name.

        Raises:
            ConfigError: the tokenizer does not have it.
        """
        return self._chat.token_id(token)

    def images(self, images: Sequence[Image]) -> list[ImageTensors]:
        """Processed images, in order; those not in the cache go through the image processor in one call.

        Raises:
            RefusedRecord: there are images, and the checkpoint takes none.
        """
        if images and self._processor is None:
            raise RefusedRecord(f"{len(images)} images for a checkpoint without an image processor")
        found: dict[str, ImageTensors] = {}
        missing: dict[str, Image] = {}
        for image in images:
            kept = self._cache.get(image.digest)
            if kept is None:
                missing[image.digest] = image
            else:
                found[image.digest] = kept
        if missing:
            for processed in self._process(missing):
                found[processed.digest] = processed
                self._cache.put(processed.digest, processed, num_bytes=processed.num_bytes)
        return [found[image.digest] for image in images]

    def forget_images(self) -> None:
        """Empty the cache of processed images."""
        self._cache.clear()

    def prompt_ids(self, prompt: Prompt) -> np.ndarray:
        """int32 [S], the prompt in the chat template up to the start of the response, with image placeholders expanded."""
        found = self._chat.prompt_ids(prompt)
        if not prompt.images:
            return np.array(found, dtype=np.int32)
        placeholder = self.token_id(self._processor.image_token)
        shown = found.count(placeholder)
        if shown != len(prompt.images):
            raise RefusedRecord(f"prompt {prompt.id!r} has {len(prompt.images)} images, the template shows {shown}")
        expansions = iter([self._expansion(tensors) for tensors in self.images(prompt.images)])
        ids: list[int] = []
        for token in found:
            ids += next(expansions) if token == placeholder else [token]
        return np.array(ids, dtype=np.int32)

    def response_ids(self, text: str, end: int | None = None) -> np.ndarray:
        """int32 [T], the text's tokens and an ending token, which is end-of-sequence unless `end` gives another.

        Raises:
            RefusedRecord: the text holds a special token.
        """
        ids = self._chat.text_ids(text)
        self.check_answer(ids, text)
        return np.array([*ids, self.tokenizer.eos_token_id if end is None else end], dtype=np.int32)

    def check_answer(self, token_ids: Sequence[int], source: str, loss_mask: np.ndarray | None = None) -> None:
        """Refuse special tokens inside a response: the placeholder of an image that is not there would make every forward pass
        fail.

        Args:
            loss_mask: uint8 [T], given for a response of several turns. Where it is 0, between the policy's turns, the special
                tokens of the chat template are allowed. Each of the policy's turns may end with an ending token.

        Raises:
            RefusedRecord: there is a special token other than the ending token at the last place, or there is no token.
        """
        last = len(token_ids) - 1
        for place, token in enumerate(token_ids):
            token = int(token)
            if token not in self._chat.special:
                continue
            is_last = place == last or (loss_mask is not None and loss_mask[place] and not loss_mask[place + 1])
            is_between = loss_mask is not None and not loss_mask[place] and token not in self._placeholders
            if not is_between and not (is_last and token in self._chat.ends):
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

    def _expansion(self, tensors: ImageTensors) -> list[int]:
        return self._tokens_of(self._processor.replace_image_token(tensors.values, 0))


def _placeholders(processor: Any, tokenizer: Any) -> set[int]:
    """Ids of the tokens that stand for images and videos."""
    names = (getattr(processor, f"{kind}_token", None) for kind in ("image", "video"))
    return {tokenizer.convert_tokens_to_ids(name) for name in names if isinstance(name, str)}
