"""Prompts made into vLLM's engine inputs, the images of several in one go.

vLLM and its processor spend milliseconds of checks on every prompt with images, more than the arithmetic of a small image
takes. So neighbours are joined to one prompt, processed once, and cut apart again. What is gained is most where every
prompt has images of its own, as in rollouts; of prompts about the same image only those after the first are joined.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from rlsys.errors import EngineError

VllmRequest = tuple[dict[str, Any], Any]
"""A prompt for `vllm.LLM`, images under their digests, and its sampling parameters."""

JOINED_MODELS = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose processor does the same with an image whatever stands beside it. Others number the images of a prompt,
or share a budget of tokens between them.
"""


class Kind(StrEnum):
    """Whether a prompt may be joined with neighbours of its kind.

    vLLM's two sides, which send and receive processed images, both evict the image that was used longest ago, and must
    agree on which that is. Of a joined prompt, the sending side marks all images as used before it adds any; the receiving
    one does so prompt by prompt. The orders agree if all images are in the cache, or none is.
    """

    NEW = "new"
    KNOWN = "known"
    ALONE = "alone"


@dataclass(frozen=True)
class Refused:
    """Stands for a prompt that the model cannot take."""

    reason: str


class PromptJoiner:
    """Makes the engine inputs of one `vllm.LLM`."""

    def __init__(self, llm: Any, *, most_images: int) -> None:
        """
        Args:
            most_images: images that vLLM takes in one prompt.
        """
        self._llm = llm
        self._most_images = most_images if llm.model_config.hf_config.model_type in JOINED_MODELS else 1
        self._has_dropped = False
        """Whether images were processed that the engine will not get."""

    def engine_inputs(self, requests: Iterable[VllmRequest]) -> Iterator[tuple[Any, Any]]:
        """Engine inputs of one call's prompts, or `Refused`, each with its sampling parameters.

        All of them must go to the engine, in order and before the next is taken, or vLLM's cache of processed images be
        emptied before the next call: of an image that was sent before, only the digest is sent, and the engine looks it up.

        Args:
            requests: taken up to `most_images` images ahead.

        Raises:
            EngineError: the tokens of a joined prompt are not those of its parts.
        """
        for kind, group in groups(requests, most_images=self._most_images):
            yield from zip(
                self._inputs(kind, [prompt for prompt, _ in group]), (params for _, params in group), strict=True
            )

    def _inputs(self, kind: Kind, prompts: Sequence[dict[str, Any]]) -> Iterator[Any]:
        self._forget_dropped()
        if self._may_join(kind, prompts):
            try:
                joined = self._joined(prompts)
            except ValueError:  # of one of them, which comes out now
                self._has_dropped = True
            else:
                yield from map(self._of_allowed_length, joined)
                return
        yield from map(self._alone, prompts)

    def _alone(self, prompt: dict[str, Any]) -> Any:
        self._forget_dropped()
        try:
            return self._of_allowed_length(self._engine_input(prompt))
        except ValueError as error:
            self._has_dropped = True
            return Refused(str(error.__cause__ or error))  # the cause: of what the processor says

    def _of_allowed_length(self, made: Any) -> Any:
        length, limit = len(made["prompt_token_ids"]), self._llm.model_config.max_model_len
        if length < limit:
            return made
        self._has_dropped = True
        return Refused(f"{length} tokens leave no room for an answer, engine.max_model_len is {limit}")

    def _forget_dropped(self) -> None:
        if self._has_dropped:
            self._llm.reset_mm_cache()
            self._has_dropped = False

    def _may_join(self, kind: Kind, prompts: Sequence[dict[str, Any]]) -> bool:
        if len(prompts) == 1:
            return False
        # Since it was sent, an image may have been evicted.
        return kind is Kind.NEW or all(self._llm.renderer.mm_processor_cache.is_cached(_digests(*prompts)))

    def _joined(self, prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        joined = {
            "prompt_token_ids": [token for prompt in prompts for token in prompt["prompt_token_ids"]],
            "multi_modal_data": {"image": [one for prompt in prompts for one in prompt["multi_modal_data"]["image"]]},
            "multi_modal_uuids": {"image": _digests(*prompts)},
        }
        return cut(self._engine_input(joined), prompts)

    def _engine_input(self, prompt: dict[str, Any]) -> Any:
        return self._llm.renderer.process_for_engine(prompt, time.time())


def groups(requests: Iterable[VllmRequest], *, most_images: int) -> Iterator[tuple[Kind, list[VllmRequest]]]:
    """Neighbours that may be joined, `most_images` images at most but for a prompt that has more; those that may not are
    groups of one.
    """
    sent: set[str] = set()
    group: list[VllmRequest] = []
    group_kind, images_left = Kind.ALONE, 0
    for request in requests:
        digests = _digests(request[0])
        kind = _kind(digests, sent)
        if kind is Kind.ALONE or kind is not group_kind or len(digests) > images_left:
            if group:
                yield group_kind, group
            group, group_kind, images_left = [], kind, most_images
        group.append(request)
        sent.update(digests)
        images_left -= len(digests)
    if group:
        yield group_kind, group


def cut(joined: dict[str, Any], prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Engine inputs of prompts that were processed as one.

    Args:
        joined: the engine input of all of them, placeholders expanded to as many tokens as an image takes.
        prompts: as they were before, placeholders as the chat template writes them.

    Raises:
        EngineError: one would not have its own images and, around them, its own tokens.
    """
    ids, places = joined["prompt_token_ids"], joined["mm_placeholders"]["image"]
    given = [prompt["prompt_token_ids"] for prompt in prompts]
    # Tokens of a placeholder in the template. The processor is not asked: it has no common name for them.
    num_shrunk = sum(map(len, given)) + sum(place.length for place in places) - len(ids)
    size, uneven = divmod(num_shrunk, len(places))
    if uneven or joined["mm_hashes"]["image"] != _digests(*prompts):
        raise EngineError(
            f"{len(prompts)} prompts cannot be cut apart: {len(places)} images, {num_shrunk} tokens of theirs"
        )
    inputs, start, first_image = [], 0, 0
    for number, (prompt, before) in enumerate(zip(prompts, given, strict=True)):
        images = slice(first_image, first_image + len(_digests(prompt)))
        own = [replace(place, offset=place.offset - start) for place in places[images]]
        after = ids[start : start + len(before) + sum(place.length - size for place in own)]
        if not _same_text(before, after, own, size):
            raise EngineError(
                f"prompt {number} of {len(prompts)} that were joined has other tokens than alone: {after}"
            )
        inputs.append(
            {
                **joined,
                "prompt_token_ids": after,
                "mm_kwargs": type(joined["mm_kwargs"])(image=joined["mm_kwargs"]["image"][images]),
                "mm_hashes": {"image": joined["mm_hashes"]["image"][images]},
                "mm_placeholders": {"image": own},
            }
        )
        start, first_image = start + len(after), images.stop
    return inputs


def _same_text(before: Sequence[int], after: Sequence[int], places: Sequence[Any], size: int) -> bool:
    """Whether a prompt has the same tokens around its images before and after its placeholders of `size` tokens were
    expanded.
    """
    end = grown = 0
    for place in places:
        if place.offset < end or after[end : place.offset] != before[end - grown : place.offset - grown]:
            return False
        end, grown = place.offset + place.length, grown + place.length - size
    return end <= len(after) and after[end:] == before[end - grown :]


def _digests(*prompts: dict[str, Any]) -> list[str]:
    shown = [prompt["multi_modal_uuids"]["image"] for prompt in prompts if "multi_modal_uuids" in prompt]
    return [digest for digests in shown for digest in digests]


def _kind(digests: Sequence[str], sent: set[str]) -> Kind:
    if digests and sent.issuperset(digests):
        return Kind.KNOWN
    # An image that comes twice in one prompt would be processed twice.
    is_new = digests and sent.isdisjoint(digests) and len({*digests}) == len(digests)
    return Kind.NEW if is_new else Kind.ALONE
