"""Trees: prompts with all their distinct responses.

    pairs (p, a > b), (p, a > c), (q, d > e)   ->   tree p: a, b, c    tree q: d, e

A prompt and its images go through the model once for all responses to them, and a response once for all pairs that it is
part of.
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
    """int32 [T], the response's tokens, at least one."""
    loss_mask: np.ndarray | None = None
    """uint8 [T], 1 for the tokens that carry loss; `None` if all do."""
    rollout: Response | None = None
    """The response as an engine sampled it for this prompt, with its recorded logprobs; `None` if no engine did."""
    round: int | None = None
    """The round for which the response was sampled."""

    @property
    def policy_version(self) -> int | None:
        """Version of the weights that sampled the response; `None` if no engine sampled it."""
        return None if self.rollout is None else self.rollout.sampled.policy_version

    def is_same(self, other: Branch) -> bool:
        """Whether both branches have the same tokens, of the same round and policy version."""
        own, others = ((one.round, one.policy_version) for one in (self, other))
        return own == others and np.array_equal(self.token_ids, other.token_ids)

    def copy(self) -> Branch:
        """A copy with memory of its own."""
        mask = None if self.loss_mask is None else self.loss_mask.copy()
        ids = self.token_ids.copy()
        if self.rollout is None:
            return Branch(token_ids=ids, loss_mask=mask, round=self.round)
        sampled = replace(self.rollout.sampled, logprobs=self.rollout.sampled.logprobs.copy())
        rollout = replace(self.rollout, token_ids=ids, loss_mask=mask, sampled=sampled)
        return Branch(token_ids=ids, loss_mask=mask, rollout=rollout, round=self.round)


@dataclass(kw_only=True, eq=False)
class Tree:
    """One prompt and its distinct responses, whether an engine sampled them or not."""

    prompt_ids: np.ndarray
    """int32 [S], image placeholders expanded."""
    images: tuple[Image, ...] = ()
    answers: list[Branch] = field(default_factory=list)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_ids) + sum(len(answer.token_ids) for answer in self.answers)

    def find(self, answer: Branch) -> int | None:
        """Index of the same response among those of the tree; `None` if the tree does not have it."""
        return next((i for i, known in enumerate(self.answers) if known.is_same(answer)), None)

    def add(self, answer: Branch) -> int:
        """Add a response if it is new to the tree.

        Returns:
            The index of the response among those of the tree.
        """
        place = self.find(answer)
        if place is not None:
            if answer.rollout is not None and answer.rollout.sampled.temperature == 1.0:
                # The same tokens may have been sampled at several temperatures; KL is estimated on those at 1.
                self.answers[place].rollout = answer.rollout
            return place
        self.answers.append(answer)
        return len(self.answers) - 1

    def copy(self) -> Tree:
        """A copy with memory of its own: the arrays of a decoded record are views that keep its whole frame in memory."""
        return replace(
            self,
            prompt_ids=self.prompt_ids.copy(),
            images=tuple(Image(pixels=image.pixels.copy()) for image in self.images),
            answers=[answer.copy() for answer in self.answers],
        )


def parts(trees: Iterable[Tree], keep: Callable[[Branch], bool]) -> list[Tree]:
    """The trees with only the responses that `keep` selects; trees that keep none are left out.

    The branches are the same objects as before.
    """
    kept = [replace(tree, answers=[answer for answer in tree.answers if keep(answer)]) for tree in trees]
    return [tree for tree in kept if tree.answers]


@dataclass(kw_only=True, eq=False)
class Unit:
    """Trees that must be in the same micro-batch, and the examples that are made of them."""

    trees: list[Tree]
    examples: list[tuple[Any, tuple[tuple[int, int], ...]]] = field(default_factory=list)
    """Each example's record, and (tree, place in the tree) of each of its responses, in the order of the example's kind."""

    @property
    def num_tokens(self) -> int:
        return sum(tree.num_tokens for tree in self.trees)


def pack(units: Sequence[Unit], budget: int) -> list[list[Unit]]:
    """Pack units of similar length into bins; a bin exceeds the budget only if it is a single unit that does.

    The longest units come first, so that the first pass through the model is the largest and memory does not grow afterwards.
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
