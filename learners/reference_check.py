"""Checks that recorded logprobs are those of the weights that they are said to come from.

Once in a stretch of training, before the first step changes the weights, the recorded logprobs of a few responses are compared
with those of a forward pass. An engine whose weights did not arrive, or that computes differently, is detected here at the
latest. If the policy that sampled the responses is the one in place, the check uses the forward pass that trains on them, and
costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from learners import weight_copies
from learners.config import LearnerConfig
from learners.deepspeed_backend import Engine
from learners.micro_batch import MicroBatch
from learners.reference import Forward, Reference
from learners.trees import Branch, Tree, parts
from rlsys.errors import LearnerError

_CHANCE = ("drop", "jitter", "noise")
"""Words that mark randomness in training passes, when they are part of a module's class name or of an attribute's name."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Recorded and computed logprobs of the response on which they differ most."""

    per_token: float
    """Mean absolute difference over the response's tokens, nats; 0 where nothing was compared."""
    recorded: float = 0.0
    """Sum of the recorded logprobs over the response, nats."""
    computed: float = 0.0
    """Sum of the computed logprobs over the response, nats."""


@dataclass(kw_only=True)
class _Awaited:
    """The responses that are to be compared during this step's forward passes, and the result so far."""

    version: int
    answers: set[Branch]
    num_compared: int = 0
    gap: Gap = field(default_factory=lambda: Gap(per_token=0.0))


class ReferenceCheck:
    """The check of one rank. All ranks must make the same calls in the same order.

    check.begin()                         # at the start of a stretch of training
    check.look(batches, join)             # when a step's micro-batches have been made
    check.passed(micro_batch, logps_L)    # after each forward pass with gradient
    check.settle()                        # before the optimizer step
    check.num_checked
    """

    def __init__(self, reference: Reference, engine: Engine, config: LearnerConfig, forward: Forward) -> None:
        self._reference, self._engine, self._config, self._forward = reference, engine, config, forward
        self._by_chance = leaves_to_chance(engine.module.modules())
        self._must_check = False
        self._awaited: _Awaited | None = None
        self.num_checked = 0
        """Number of responses that this rank has compared in the stretch."""

    def begin(self) -> None:
        """Start a stretch of training: the next step that has recorded responses is checked."""
        self._must_check = self._config.reference_checks > 0
        self._awaited = None
        self.num_checked = 0

    def look(self, batches: Sequence[MicroBatch], join: Callable[[list[Tree]], MicroBatch]) -> None:
        """Choose the responses to compare, if this is the stretch's first step that has recorded responses.

        The responses are compared at once, in a forward pass of their own, if weights other than those in place sampled them,
        or if training passes are random. Otherwise `passed` compares them.

        Args:
            join: makes one micro-batch of some trees; without trees it makes one that has no effect.

        Raises:
            LearnerError: a response's gap is above the tolerance; the message has both values.
        """
        if not self._must_check:
            return
        trees = [tree for batch in batches if batch.examples for tree in batch.trees]
        known = self._reference.weights_of_versions()
        used = [branch for tree in trees for branch in tree.answers if self._reference.is_used(branch)]
        versions = [branch.policy_version for branch in used if branch.policy_version in known]
        version = int(self._engine.reduce([max(versions, default=-1)], "max")[0])
        if version < 0:
            return
        self._must_check = False
        checked = {branch for branch in used if branch.policy_version == version}
        chosen = _take_answers(parts(trees, checked.__contains__), self._config.reference_checks)
        weights = known.get(version)
        self._awaited = _Awaited(version=version, answers={branch for tree in chosen for branch in tree.answers})
        if weights is not None or self._by_chance:
            joined = join(chosen)
            with nullcontext() if weights is None else weight_copies.using(self._engine, weights):
                self.passed(joined, self._forward(joined))
            self.settle()

    def passed(self, batch: MicroBatch, logps_L: torch.Tensor) -> None:
        """Compare those chosen responses that are in the micro-batch of a forward pass.

        Args:
            logps_L: the computed logprobs of `batch.targets`.
        """
        if self._awaited is None:
            return
        branches = batch.answers
        pieces = logps_L.detach().float().cpu().tensor_split(batch.last_token[:-1] + 1)
        compared = [
            _gap(branch, own) for branch, own in zip(branches, pieces, strict=True) if branch in self._awaited.answers
        ]
        self._awaited.num_compared += len(compared)
        self._awaited.gap = max([self._awaited.gap, *compared], key=lambda gap: gap.per_token)

    def settle(self) -> None:
        """Finish the step's check. All ranks must call this together.

        Raises:
            LearnerError: a response's gap is above the tolerance; the message has both values.
        """
        awaited, self._awaited = self._awaited, None
        if awaited is not None:
            self._refuse(awaited.gap, awaited.version)
            self.num_checked += awaited.num_compared

    def _refuse(self, gap: Gap, version: int) -> None:
        worst = self._engine.reduce([gap.per_token], "max")[0]
        if worst <= self._config.tolerance:
            return
        is_worst = gap.per_token == worst
        shown = [value if is_worst else float("-inf") for value in (gap.recorded, gap.computed)]
        recorded, computed = self._engine.reduce(shown, "max")
        raise LearnerError(
            f"the answers of version {version} do not come from the weights they are said to: an answer's recorded "
            f"log-probability is {recorded:.6f}, the forward pass gives {computed:.6f} "
            f"({worst:.2e} nats per token, tolerance {self._config.tolerance:g})"
        )


def leaves_to_chance(modules: Iterable[nn.Module]) -> bool:
    """Whether two training passes through some modules may differ, because of dropout or of a router's noise."""
    return any(
        isinstance(value, float)
        and value > 0
        and any(word in f"{type(module).__name__}.{name}".lower() for word in _CHANCE)
        for module in modules
        for name, value in vars(module).items()
    )


def _take_answers(trees: Sequence[Tree], number: int) -> list[Tree]:
    """Trees with at most `number` responses in total, spread over prompts."""
    share = max(1, number // max(1, len(trees)))
    return [replace(tree, answers=tree.answers[:share]) for tree in trees[:number]]


def _gap(branch: Branch, computed: torch.Tensor) -> Gap:
    recorded = torch.from_numpy(branch.rollout.sampled.logprobs.copy())
    if branch.loss_mask is not None:
        sampled = torch.from_numpy(branch.loss_mask.astype(bool))
        recorded, computed = recorded[sampled], computed[sampled]
    difference = float((recorded - computed).abs().mean())
    return Gap(per_token=difference, recorded=float(recorded.sum()), computed=float(computed.sum()))
