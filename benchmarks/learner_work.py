"""What the two learners are timed on: checkpoints and preference pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.records import Image, PreferencePair, Prompt, Response, Sampled, Turn
from rlsys.worlds.scenes.language import vocabulary
from rlsys.worlds.scenes.policy import CHAT_TEMPLATE, END_TOKEN, Shape, make_policy
from rlsys.worlds.scenes.source import make_prompt
from rlsys.worlds.scenes.world import CELL_PIXELS

SCENES = Shape()
SMALL = Shape(hidden=192, layers=4, mlp=512, vision_hidden=128, vision_layers=3, vision_mlp=256)
"""2.7 million parameters: large enough that a learner's step on long sequences is mostly arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Pairs of one kind, for one checkpoint."""

    name: str
    model: Shape = SCENES
    vocabulary: int | None = None
    """Rows of the embedding and of the head; `None` is as many as there are words."""
    cells: int = 3
    """Cells along a side of the square image: an image token each."""
    prompt_words: int | None = None
    """Words of the question; `None` asks for a description of a scene, in three words."""
    response_tokens: tuple[int, int] = (28, 36)
    """Fewest and most, the ending token included."""
    responses: int = 2
    pairs_per_prompt: int = 1
    batch: int = 32
    """Pairs per optimizer step."""
    steps: int = 4
    """Optimizer steps per turn: what a turn trains on is new to both sides, images included."""
    tried_sizes: tuple[int, ...] = (16, 32)
    """Pairs per forward pass that TRL is tried with; the rest of a step's are accumulated. Smaller ones were never the
    fastest in the runs of which the trials are known.
    """
    frozen_vision: bool = False

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
        size = {"shortest_edge": CELL_PIXELS**2, "longest_edge": (CELL_PIXELS * self.cells) ** 2}
        processor.image_processor.size = processor.image_processor.size | size
        processor.save_pretrained(directory)
        return directory

    def make_pairs(self, count: int, directory: Path) -> list[PreferencePair]:
        """Pairs whose responses have no recorded logprobs yet, prompt by prompt."""
        from learners.tokens import Processor

        processor, rng = Processor(directory), np.random.default_rng(0)
        words = [word for word in vocabulary() if len(processor.tokenizer(word)["input_ids"]) == 1]
        pairs: list[PreferencePair] = []
        for number in range(count):
            if len(pairs) >= count:
                break
            prompt = self._prompt(number, rng, words)
            responses = [self._response(rng, words, processor) for _ in range(self.responses)]
            chosen = list(combinations(range(self.responses), 2))
            picked = sorted(rng.choice(len(chosen), self.pairs_per_prompt, replace=False))
            ids = processor.prompt_ids(prompt)
            pairs += [_pair(prompt, ids, *(responses[place] for place in chosen[pick])) for pick in picked]
        return pairs[:count]

    def _prompt(self, number: int, rng: np.random.Generator, words: Sequence[str]) -> Prompt:
        if self.prompt_words is None:
            return make_prompt("online", number, "describe")
        side = CELL_PIXELS * self.cells
        image = Image(pixels=rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        text = " ".join(rng.choice(words, self.prompt_words))
        return Prompt(id=f"{self.name}/{number}", turns=(Turn(role="user", text=text),), images=(image,))

    def _response(self, rng: np.random.Generator, words: Sequence[str], processor: object) -> Response:
        low, high = self.response_tokens
        text = " ".join(rng.choice(words, int(rng.integers(low, high + 1)) - 1))
        ids = processor.response_ids(text)
        unknown = np.zeros(len(ids), np.float32)
        sampled = Sampled(policy_version=0, logprobs=unknown, temperature=1.0, seed=0)
        return Response(text=text, token_ids=ids, sampled=sampled)


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


def as_text(pair: PreferencePair) -> dict[str, Any]:
    """A pair as TRL takes it: images, a rendered prompt with one placeholder per image, and responses that end."""
    from jinja2 import Template
    from PIL import Image as PillowImage

    content = [{"type": "image"} for _ in pair.prompt.images] + [{"type": "text", "text": pair.prompt.turns[0].text}]
    rendered = Template(CHAT_TEMPLATE).render(
        messages=[{"role": "user", "content": content}], add_generation_prompt=True
    )
    chosen, rejected = (f"{response.text} {END_TOKEN}" for response in (pair.chosen, pair.rejected))
    images = [PillowImage.fromarray(image.pixels) for image in pair.prompt.images]
    return {"images": images, "prompt": rendered, "chosen": chosen, "rejected": rejected}
