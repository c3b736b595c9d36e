"""What the two learners are timed on: checkpoints, preference pairs, and the floating-point operations they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from rlsys.records import Image, PreferencePair, Prompt, Response, Turn
from rlsys.worlds.scenes.language import vocabulary
from rlsys.worlds.scenes.policy import CHAT_TEMPLATE, END_TOKEN, Shape, make_policy
from rlsys.worlds.scenes.source import make_prompt
from rlsys.worlds.scenes.world import CELL_PIXELS

SCENES_MODEL = Shape()
_PATCHES_PER_TOKEN = 4
_PATCH_VALUES = 3 * 2 * (CELL_PIXELS // 2) ** 2


@dataclass(frozen=True, kw_only=True)
class Work:
    """Pairs of one kind, for one checkpoint."""

    name: str
    model: Shape = SCENES_MODEL
    vocabulary: int | None = None
    """Rows of the embedding and of the head; `None` is as many as there are words."""
    picture: int | None = 3
    """Cells along a side of the square picture: an image token each. `None` is text alone."""
    prompt_words: int | None = None
    """Words of the question; `None` asks for a description of a scene, in three words."""
    answer_tokens: tuple[int, int] = (28, 36)
    """Fewest and most, the ending token included."""
    answers: int = 2
    pairs_per_prompt: int = 1
    batch: int = 32
    """Pairs per optimizer step."""
    steps: int = 4
    """Optimizer steps per turn: what a turn trains on is new to both sides, images included."""
    tried_sizes: tuple[int, ...] = (16, 32)
    """Pairs per forward pass that TRL is tried with; the rest of a step's are accumulated. Half of the smallest was never
    the fastest in the runs of which the trials are known.
    """
    frozen_vision: bool = False
    precision: str = "fp32"
    """Of both sides, `fp32` or `bf16` (weights and their updates in float32 with either)."""

    @property
    def pairs_per_turn(self) -> int:
        return self.batch * self.steps

    def make_checkpoint(self, directory: Path) -> Path:
        """Random weights, the tokenizer and an image processor that scales nothing down."""
        import torch
        from transformers import AutoConfig, AutoProcessor, Qwen2_5_VLForConditionalGeneration

        make_policy(directory, seed=1, shape=self.model)
        if self.vocabulary is not None:
            config = AutoConfig.from_pretrained(directory)
            config.text_config.vocab_size = self.vocabulary
            torch.manual_seed(1)
            Qwen2_5_VLForConditionalGeneration(config).save_pretrained(directory)
        processor = AutoProcessor.from_pretrained(directory)
        size = {"shortest_edge": CELL_PIXELS**2, "longest_edge": (CELL_PIXELS * (self.picture or 1)) ** 2}
        processor.image_processor.size = processor.image_processor.size | size
        processor.save_pretrained(directory)
        return directory

    def make_pairs(self, count: int, directory: Path) -> list[PreferencePair]:
        """Pairs whose answers have no recorded log-probabilities yet, prompt by prompt."""
        from learners.tokens import Processor

        processor, rng = Processor(directory), np.random.default_rng(0)
        words = [word for word in vocabulary() if len(processor.tokenizer(word)["input_ids"]) == 1]
        pairs: list[PreferencePair] = []
        for number in range(count):
            if len(pairs) >= count:
                break
            prompt = self._prompt(number, rng, words)
            answers = [self._answer(rng, words, processor) for _ in range(self.answers)]
            chosen = list(combinations(range(self.answers), 2))
            picked = sorted(rng.choice(len(chosen), self.pairs_per_prompt, replace=False))
            ids = processor.prompt_ids(prompt)
            pairs += [_pair(prompt, ids, *(answers[place] for place in chosen[pick])) for pick in picked]
        return pairs[:count]

    def _prompt(self, number: int, rng: np.random.Generator, words: Sequence[str]) -> Prompt:
        if self.picture == 3 and self.prompt_words is None:
            return make_prompt("online", number, "describe")
        side = CELL_PIXELS * (self.picture or 0)
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        text = " ".join(rng.choice(words, self.prompt_words))
        shown = () if self.picture is None else (Image(pixels=pixels),)
        return Prompt(id=f"{self.name}/{number}", turns=(Turn(role="user", text=text),), images=shown)

    def _answer(self, rng: np.random.Generator, words: Sequence[str], processor: object) -> Response:
        low, high = self.answer_tokens
        text = " ".join(rng.choice(words, int(rng.integers(low, high + 1)) - 1))
        ids = processor.response_ids(text)
        return Response(
            text=text,
            token_ids=ids,
            logprobs=np.zeros(len(ids), np.float32),
            count=1,
            finish_reason="stop",
            temperature=1.0,
            seed=0,
        )

    def flop_ratios(self, pairs: Sequence[PreferencePair]) -> dict[str, float]:
        """How many times fewer operations our way takes than TRL's on these pairs, if nothing but matrix products of the
        layers counted: of the language model alone, and with the vision tower.

        TRL: chosen and rejected apart, forward and backward (6 per parameter and token), and with pictures a reference pass
        (2); without, that one is done before training and not timed. Ours: prompt and answers once, no reference pass. A
        frozen tower takes 2 instead of 6. Padding, attention and the head are not counted.
        """
        language, vision = self._parameters()
        once = {pair.prompt.id: pair for pair in pairs}.values()
        answers = {id(answer): answer for pair in pairs for answer in (pair.chosen, pair.rejected)}.values()
        ours = 6 * language * (_prompt_tokens(once) + sum(len(answer.token_ids) for answer in answers))
        apart = 2 * _prompt_tokens(pairs) + sum(len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in pairs)
        theirs = (6 if self.picture is None else 8) * language * apart
        patches = _PATCHES_PER_TOKEN * (self.picture or 0) ** 2
        one_pass = 2 if self.frozen_vision else 6
        with_vision = (theirs + (one_pass + 2) * vision * patches * 2 * len(pairs)) / (
            ours + one_pass * vision * patches * len(once)
        )
        return {"TRL's FLOPs over ours, language model": theirs / ours, "TRL's FLOPs over ours": with_vision}

    def _parameters(self) -> tuple[int, int]:
        """Weights of matrices that every token of the language model, and every patch of the tower, meets."""
        shape = self.model
        keys = max(1, shape.hidden // 64) * 32
        layer = 2 * shape.hidden**2 + 2 * shape.hidden * keys + 3 * shape.hidden * shape.mlp
        block = 4 * shape.vision_hidden**2 + 3 * shape.vision_hidden * shape.vision_mlp
        merged = _PATCHES_PER_TOKEN * shape.vision_hidden
        merger = (merged**2 + merged * shape.hidden) // _PATCHES_PER_TOKEN
        return shape.layers * layer, shape.vision_layers * block + _PATCH_VALUES * shape.vision_hidden + merger


def _prompt_tokens(pairs: Sequence[PreferencePair]) -> int:
    return sum(len(pair.prompt_token_ids) for pair in pairs)


def _pair(prompt: Prompt, ids: np.ndarray, chosen: Response, rejected: Response) -> PreferencePair:
    return PreferencePair(
        prompt=prompt,
        prompt_token_ids=ids,
        chosen=chosen,
        rejected=rejected,
        chosen_score=1.0,
        rejected_score=0.0,
        margin=1.0,
        beta_scale=1.0,
        round=0,
    )


def with_logprobs(pairs: Sequence[PreferencePair], recorded: Sequence[np.ndarray]) -> list[PreferencePair]:
    """The pairs with log-probabilities of chosen and rejected answer in turn."""
    return [
        replace(
            pair,
            chosen=_with_logprobs(pair.chosen, recorded[2 * number]),
            rejected=_with_logprobs(pair.rejected, recorded[2 * number + 1]),
        )
        for number, pair in enumerate(pairs)
    ]


def _with_logprobs(response: Response, logprobs: np.ndarray) -> Response:
    return replace(response, sampled=replace(response.sampled, logprobs=logprobs))


def as_text(pair: PreferencePair) -> dict[str, str]:
    """A pair as TRL takes it: a rendered prompt with one placeholder per picture, and answers that end."""
    from jinja2 import Template

    content = [{"type": "image"} for _ in pair.prompt.images] + [{"type": "text", "text": pair.prompt.turns[0].text}]
    rendered = Template(CHAT_TEMPLATE).render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )
    chosen, rejected = (f"{answer.text} {END_TOKEN}" for answer in (pair.chosen, pair.rejected))
    return {"prompt": rendered, "chosen": chosen, "rejected": rejected}
