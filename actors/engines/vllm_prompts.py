"""Prompts rendered for vLLM, the pictures of several at once.

Around the arithmetic of a picture stand milliseconds of checks that vLLM and its processor make once per prompt. So
neighbours are rendered as one prompt, one behind the other, and cut apart again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any


class Renderer:
    """Of one `vllm.LLM`."""

    def __init__(self, llm: Any, *, most_images: int) -> None:
        """
        Args:
            most_images: that vLLM takes in one prompt.
        """
        self._llm = llm
        self._most = most_images
        self._together = True

    def rendered(self, requests: Iterable[tuple[dict[str, Any], Any]]) -> Iterator[tuple[Any, Any]]:
        """Prompts of one call, as the engine takes them in, with what belongs to each.

        Every engine input must go to the engine, in order, or vLLM's cache of processed images be emptied before the next
        call: of an image that was rendered before, vLLM hands on only the name.

        Args:
            requests: prompts for `vllm.LLM`, images under their digests; taken as they are needed.
        """
        seen: set[str] = set()
        group: list[tuple[dict[str, Any], Any]] = []
        last, room = None, 0
        for request in requests:
            names = _names(request[0])
            kind = _kind(names, seen)
            if kind is None or kind != last or len(names) > room:
                yield from self._render(group)
                group, room = [], self._most
            group.append(request)
            seen.update(names)
            last, room = kind, room - len(names)
        yield from self._render(group)

    def _render(self, group: Sequence[tuple[dict[str, Any], Any]]) -> Iterator[tuple[Any, Any]]:
        prompts = [prompt for prompt, _ in group]
        if len(prompts) > 1 and self._together:
            inputs = cut(self._input(_joined(prompts)), prompts)
            if inputs is not None:
                yield from zip(inputs, (params for _, params in group), strict=True)
                return
            # Images of this model do not stand where the prompt has them.
            self._together = False
            self._llm.reset_mm_cache()
        for prompt, params in group:
            yield self._input(prompt), params

    def _input(self, prompt: dict[str, Any]) -> Any:
        return self._llm.renderer.process_for_engine(prompt, time.time())


def cut(whole: dict[str, Any], prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]] | None:
    """Engine inputs of prompts that were rendered as one; `None` if each does not have its own tokens around its images.

    Args:
        whole: the engine input of all of them.
        prompts: as they were before their images' marks became as many tokens as an image takes.
    """
    ids, places = whole["prompt_token_ids"], whole["mm_placeholders"]["image"]
    given = [prompt["prompt_token_ids"] for prompt in prompts]
    num_marks = sum(map(len, given)) + sum(place.length for place in places) - len(ids)
    mark, left = divmod(num_marks, len(places))
    inputs, start, first = [], 0, 0
    for prompt, before in zip(prompts, given, strict=True):
        last = first + len(_names(prompt))
        own = [replace(place, offset=place.offset - start) for place in places[first:last]]
        after = ids[start : start + len(before) + sum(place.length - mark for place in own)]
        if left or not _same_words(before, after, own, mark):
            return None
        inputs.append(
            {
                **whole,
                "prompt_token_ids": after,
                "mm_kwargs": type(whole["mm_kwargs"])(image=whole["mm_kwargs"]["image"][first:last]),
                "mm_hashes": {"image": whole["mm_hashes"]["image"][first:last]},
                "mm_placeholders": {"image": own},
            }
        )
        start, first = start + len(after), last
    return inputs


def _same_words(before: Sequence[int], after: Sequence[int], places: Sequence[Any], mark: int) -> bool:
    """Whether two versions of a prompt have the same tokens between images that take `mark` tokens in the first."""
    at = grown = 0
    for place in places:
        if place.offset < at or after[at : place.offset] != before[at - grown : place.offset - grown]:
            return False
        at, grown = place.offset + place.length, grown + place.length - mark
    return after[at:] == before[at - grown :]


def _joined(prompts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {
        "prompt_token_ids": [token for prompt in prompts for token in prompt["prompt_token_ids"]],
        **{
            kind: {"image": [image for prompt in prompts for image in prompt[kind]["image"]]}
            for kind in ("multi_modal_data", "multi_modal_uuids")
        },
    }


def _names(prompt: dict[str, Any]) -> list[str]:
    return prompt["multi_modal_uuids"]["image"] if "multi_modal_uuids" in prompt else []


def _kind(names: Sequence[str], seen: set[str]) -> str | None:
    """Of prompts that may be rendered together, `new` or `known`, after their images; others `None`.

    vLLM keeps two records of what it has in its cache, in step as long as a prompt has either images that are there or such
    that are not. A picture that comes twice in one prompt would be processed twice.
    """
    if names and seen.issuperset(names):
        return "known"
    return "new" if names and seen.isdisjoint(names) and len({*names}) == len(names) else None
