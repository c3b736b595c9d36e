"""Makes vLLM's engine inputs from prompts, and processes the images of several prompts together.

vLLM and its processor spend milliseconds on checks of every prompt with images, more than the processing of a small image
takes. Therefore consecutive prompts are joined to one prompt, processed once, and cut apart again. The gain is largest if
every prompt has images of its own, as in rollouts. Of several prompts with the same image, only those after the first are
joined.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from rlsys.errors import EngineError

VllmRequest = tuple[dict[str, Any], Any]
"""A prompt for `vllm.LLM`, with its images under their digests, and its sampling parameters."""

JOINED_MODELS = ("qwen2_vl", "qwen2_5_vl")
"""Model types whose processor treats an image in the same way whatever other images the prompt has. Other processors number the
images of a prompt, or divide a budget of tokens among them.
"""


class Kind(StrEnum):
    """Whether a prompt may be joined with consecutive prompts of the same kind.

    vLLM has two caches of processed images, on its sending and on its receiving side. Both evict the least recently used image,
    and must agree on which image that is. For a joined prompt, the sending side marks all images as used before it adds any
    image; the receiving side does so prompt by prompt. The orders agree if all images are in the cache (`KNOWN`), or if none is
    (`NEW`). A prompt of any other kind is processed alone (`ALONE`).
    """

    NEW = "new"
    KNOWN = "known"
    ALONE = "alone"


@dataclass(frozen=True)
class Refused:
    """The result for a prompt that the model cannot process."""

    reason: str


class PromptJoiner:
    """Makes the engine inputs of one `vllm.LLM`."""

    def __init__(self, llm: Any, *, most_images: int) -> None:
        """
        Args:
            most_images: largest number of images that vLLM accepts in one prompt.
        """
        self._llm = llm
        self._most_images = most_images if llm.model_config.hf_config.model_type in JOINED_MODELS else 1
        self._has_dropped = False
        """Whether images were processed that the engine will not receive."""

    def engine_inputs(self, requests: Iterable[VllmRequest]) -> Iterator[tuple[Any, Any]]:
        """The engine inputs of one call's prompts, or `Refused`, each with its sampling parameters.

        The caller must pass every input to the engine, in order and before it takes the next one. Otherwise it must empty
        vLLM's cache of processed images before the next call. The reason is that for an image that was sent before, only the
        digest is sent, and the engine looks the image up in its cache.

        Args:
            requests: the requests, which are taken up to `most_images` images ahead.

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
            except ValueError:  # one of the prompts is invalid; processing them alone shows which
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
            return Refused(str(error.__cause__ or error))  # the cause has the message of the processor

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
        # An image may have been evicted from the cache since it was sent.
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
    """Groups of consecutive prompts that may be joined, with their kind. A group has at most `most_images` images, unless it
    is a single prompt with more. A prompt that may not be joined is a group of its own.
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
    """The engine inputs of prompts that were processed as one joined prompt.

    Args:
        joined: the engine input of the joined prompt, in which every placeholder is expanded to the number of tokens of its
            image.
        prompts: the prompts before processing, with placeholders as the chat template writes them.

    Raises:
        EngineError: an input would not have the images of its prompt and, around them, the tokens of its prompt.
    """
    ids, places = joined["prompt_token_ids"], joined["mm_placeholders"]["image"]
    given = [prompt["prompt_token_ids"] for prompt in prompts]
    # `size` is the number of tokens of a placeholder in the template. It is computed from the lengths, because processors have
    # no common name for it.
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
    """Whether the tokens around the images of a prompt are the same before and after its placeholders of `size` tokens were
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
    # An image that occurs twice in one prompt would be processed twice.
    is_new = digests and sent.isdisjoint(digests) and len({*digests}) == len(digests)
    return Kind.NEW if is_new else Kind.ALONE
