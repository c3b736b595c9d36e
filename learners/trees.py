"""Prompts with all their distinct answers.

    pairs (p, a > b), (p, a > c), (q, d > e)   ->   tree p: a, b, c    tree q: d, e

A prompt and its images go through the model once for all answers to them, and an answer once for all pairs it takes
part in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rlsys.records import Image, Response


@dataclass(kw_only=True, eq=False)
class Branch:
    """One branch of a tree: a response after the tree's prompt."""

    token_ids: np.ndarray
    """int32 [T], at least one."""
    loss_mask: np.ndarray | None = None
    """uint8 [T], 1 for the tokens that carry loss; `None` if all do."""
    rollout: Response | None = None
    """The response as an engine sampled it for this prompt: its log-probabilities are recorded there."""
    round: int | None = None
    """For which it was sampled."""

    @property
    def policy_version(self) -> int | None:
        """Version of the weights that sampled the response, if an engine did."""
        return None if self.rollout is None else self.rollout.sampled.policy_version

    def is_same(self, other: Branch) -> bool:
        """Whether both are the same tokens of the same origin."""
        own, others = ((one.round, one.policy_version) for one in (self, other))
        return own == others and np.array_equal(self.token_ids, other.token_ids)

    def copy(self) -> Branch:
        """With memory of its own."""
        mask = None if self.loss_mask is None else self.loss_mask.copy()
        ids = self.token_ids.copy()
        if self.rollout is None:
            return Branch(token_ids=ids, loss_mask=mask, round=self.round)
        sampled = replace(self.rollout.sampled, logprobs=self.rollout.sampled.logprobs.copy())
        rollout = replace(self.rollout, token_ids=ids, loss_mask=mask, sampled=sampled)
        return Branch(token_ids=ids, loss_mask=mask, rollout=rollout, round=self.round)


@dataclass(kw_only=True, eq=False)
class Tree:
    """One prompt and its distinct answers, whoever gave them."""

    prompt_ids: np.ndarray
    """int32 [S], image placeholders expanded."""
    images: tuple[Image, ...] = ()
    answers: list[Branch] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(answer.token_ids) for answer in self.answers)

    def find(self, answer: Branch) -> int | None:
        """Place of the same answer among the tree's, if it is there."""
        return next((i for i, known in enumerate(self.answers) if known.is_same(answer)), None)

    def add(self, answer: Branch) -> int:
        """Place of the answer among the tree's, which it takes if it is new."""
        place = self.find(answer)
        if place is not None:
            if answer.rollout is not None and answer.rollout.sampled.temperature == 1.0:
                # Of the same tokens at several temperatures, the divergence is estimated on those at 1.
                self.answers[place].rollout = answer.rollout
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


def parts(trees: Iterable[Tree], keep: Callable[[Branch], bool]) -> list[Tree]:
    """Trees with some of their answers, the same objects; trees without any are left out."""
    kept = [replace(tree, answers=[answer for answer in tree.answers if keep(answer)]) for tree in trees]
    return [tree for tree in kept if tree.answers]


@dataclass(kw_only=True, eq=False)
class Unit:
    """Trees that must share a micro-batch, and the examples made of them."""

    trees: list[Tree]
    examples: list[tuple[Any, tuple[tuple[int, int], ...]]] = field(default_factory=list)
    """The record, and (tree, place) of each of its answers, in the order that its kind gives them."""

    @property
    def num_tokens(self) -> int:
        return sum(tree.num_tokens for tree in self.trees)


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
