"""A small policy and pairs for tests of the learner."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from learners.config import LearnerConfig
from learners.plan import FitPlan
from learners.rendezvous import Rendezvous
from learners.shards import shards
from learners.tokens import Processor
from rlsys import wire
from rlsys.objectives.dpo import DPO
from rlsys.records import Image, PreferencePair, Probe, Prompt, Response, Turn
from rlsys.worlds.scenes.policy import Shape, make_policy
from tests.fakes import sampled_response

SHAPE = Shape(hidden=64, layers=2, mlp=96, vision_hidden=32, vision_layers=2, vision_mlp=64)
PLAN = FitPlan(lr=1e-3, options={"beta": 0.1})


def make_small(directory: Path, seed: int = 1) -> Path:
    return make_policy(directory, seed=seed, shape=SHAPE)


def rollout(rng: np.random.Generator, length: int, version: int = 0) -> Response:
    ids = rng.integers(12, 40, length).astype(np.int32)
    return sampled_response(text="x", token_ids=ids, logprobs=-np.ones(length, np.float32), policy_version=version)


def make_pairs(
    folder: Path, count: int, *, seed: int = 0, images: str = "some", version: int = 0
) -> list[PreferencePair]:
    """Pairs of random answers, two or three per prompt; `images` is `some`, `all` or `none`."""
    rng, processor = np.random.default_rng(seed), Processor(folder)
    pairs: list[PreferencePair] = []
    while len(pairs) < count:
        number = len(pairs)
        shown = images == "all" or (images == "some" and number % 4 < 2)
        size = 28 * int(rng.integers(2, 5))
        prompt = Prompt(
            id=f"p{number}",
            turns=(Turn(role="user", text="describe the picture" if number % 3 else "is there a red circle"),),
            images=(Image(pixels=rng.integers(0, 256, (size, size, 3), dtype=np.uint8)),) if shown else (),
        )
        ids = processor.prompt_ids(prompt)
        answers = [rollout(rng, int(rng.integers(1, 12)), version) for _ in range(3)]
        for chosen, rejected in ((0, 1), (0, 2), (1, 2))[: 2 + number % 2]:
            pairs.append(
                PreferencePair(
                    prompt=prompt,
                    prompt_token_ids=ids,
                    chosen=answers[chosen],
                    rejected=answers[rejected],
                    chosen_score=1.0,
                    rejected_score=0.0,
                    margin=1.0,
                    beta_scale=1.0 + 0.1 * number,
                    round=0,
                )
            )
    return pairs[:count]


def probes_of(pairs: list[PreferencePair]) -> list[Probe]:
    return [
        Probe(
            prompt=pair.prompt,
            prompt_token_ids=tuple(pair.prompt_token_ids.tolist()),
            response_token_ids=tuple(answer.token_ids.tolist()),
        )
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]


def with_logprobs(pairs: list[PreferencePair], scores: list[np.ndarray]) -> list[PreferencePair]:
    """The pairs with recorded log-probabilities as `scores` of `probes_of(pairs)` has them."""
    return [
        replace(
            pair,
            chosen=_with_logprobs(pair.chosen, scores[2 * number]),
            rejected=_with_logprobs(pair.rejected, scores[2 * number + 1]),
        )
        for number, pair in enumerate(pairs)
    ]


def _with_logprobs(response: Response, logprobs: np.ndarray) -> Response:
    return replace(response, sampled=replace(response.sampled, logprobs=logprobs))


def make_learner(meeting: Rendezvous, folder: Path, objective: Any = None, **options: Any) -> Any:
    from learners.learner import LearnerRank

    options = {"reference_checks": 0, "num_ranks": meeting.world_size, "deadline_s": 60.0, **options}
    return LearnerRank(LearnerConfig(**options), objective or DPO(), str(folder), meeting)


def frame_of(records: list[Any], meeting: Rendezvous) -> bytes | None:
    share = shards(records, meeting.world_size)[meeting.rank]
    return wire.encode_many(share) if share else None


def scores_of(learner: Any, pairs: list[PreferencePair]) -> list[np.ndarray]:
    return learner.logprobs(wire.encode_many(probes_of(pairs)))
