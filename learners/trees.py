"""Prompts with all their distinct answers.

    pairs (p, a > b), (p, a > c), (q, d > e)   ->   tree p: a, b, c    tree q: d, e

A prompt and its images go through the model once for all answers to them, and an answer once for all pairs it takes
part in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlsys.records import Image, Response, Sampled


@dataclass(kw_only=True, eq=False)
class Branch:
    """One branch of a tree."""

    token_ids: np.ndarray
    """int32 [T], at least one."""
    rollout: Response | None = None
    """Where the answer was sampled by an engine: its log-probabilities are recorded there."""

    def copy(self) -> Branch:
        """With memory of its own."""
        if self.rollout is None:
            return Branch(token_ids=self.token_ids.copy())
        ids = self.rollout.token_ids.copy()
        return Branch(token_ids=ids, rollout=replace(self.rollout, token_ids=ids, sampled=_own(self.rollout.sampled)))


@dataclass(kw_only=True, eq=False)
class Tree:
    """One prompt and its distinct answers."""

    prompt_ids: np.ndarray
    """int32 [S], image placeholders expanded."""
    images: tuple[Image, ...] = ()
    answers: list[Branch] = field(default_factory=list)
    policy_version: int | None = None
    """Version that sampled the answers, if an engine did."""
    round: int | None = None
    """For which it did."""

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(answer.token_ids) for answer in self.answers)

    def find(self, answer: Branch) -> int | None:
        """Place of an answer of these tokens among the tree's, if there is one."""
        same = (i for i, known in enumerate(self.answers) if np.array_equal(known.token_ids, answer.token_ids))
        return next(same, None)

    def add(self, answer: Branch) -> int:
        """Place of the answer among the tree's, which it takes if it is new."""
        place = self.find(answer)
        if place is not None:
            return place
        self.answers.append(answer)
        return len(self.answers) - 1

    def copy(self) -> Tree:
        """With memory of its own: arrays of a decoded record are views that keep all of its frame."""
        return replace(
            self,
            prompt_ids=self.prompt_ids.copy(),
            images=tuple(Image(pixels=image.pixels.copy()) for image in self.images),
            answers=[answer.copy() for answer in self.answers],
        )


@dataclass(kw_only=True, eq=False)
class Unit:
    """Trees that must share a micro-batch, and the examples made of them."""

    trees: list[Tree]
    examples: list[tuple[Any, tuple[tuple[int, int], ...]]] = field(default_factory=list)
    """The record, and (tree, place) of each of its answers, in the order of its class."""

    @property
    def num_tokens(self) -> int:
        return sum(tree.num_tokens for tree in self.trees)


def _own(sampled: Sampled | None) -> Sampled | None:
    return None if sampled is None else replace(sampled, logprobs=sampled.logprobs.copy())


def pack(units: Sequence[Unit], budget: int) -> list[list[Unit]]:
    """Units of like length together, each bin within the budget unless a single unit is not.

    Bins follow the units' order of length, longest first, so that the first pass through the model is the largest
    and memory does not grow afterwards.
    """
    bins: list[list[Unit]] = []
    filled = 0
    for unit in sorted(units, key=lambda unit: -unit.num_tokens):
        if not bins or filled + unit.num_tokens > budget:
            bins.append([])
            filled = 0
        bins[-1].append(unit)
        filled += unit.num_tokens
    return bins
