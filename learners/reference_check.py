"""Whether recorded log-probabilities are those of the weights they are said to come from.

Once in a stretch of training, before its first step changes anything, those of a few answers are held against a forward pass:
an engine whose weights did not arrive, or that computes otherwise, is found here at the latest. If the policy that sampled
the answers is the one in place, the pass is the one that trains on them, and the check costs nothing.
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
"""Words in names of modules, or of their numbers, that make a training pass differ from another one."""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Recorded and computed log-probabilities of the answer on which they differ most."""

    per_token: float
    """Mean absolute difference over the answer's tokens, nats; 0 where nothing was compared."""
    recorded: float = 0.0
    """Sum over the answer, nats."""
    computed: float = 0.0


@dataclass(kw_only=True)
class _Awaited:
    """Answers that are compared as this step's passes go by."""

    version: int
    answers: set[Branch]
    num_compared: int = 0
    gap: Gap = field(default_factory=lambda: Gap(per_token=0.0))


class ReferenceCheck:
    """A rank's check. All ranks call it alike.

    check.begin()                         # of a stretch of training
    check.look(batches, join)             # a step's micro-batches are there
    check.passed(micro_batch, logps_L)    # after each forward pass with gradient
    check.settle()                        # before the step
    check.num_checked
    """

    def __init__(self, reference: Reference, engine: Engine, config: LearnerConfig, forward: Forward) -> None:
        self._reference, self._engine, self._config, self._forward = reference, engine, config, forward
        self._by_chance = leaves_to_chance(engine.module.modules())
        self._must_check = False
        self._awaited: _Awaited | None = None
        self.num_checked = 0
        """Answers that this rank compared in the stretch."""

    def begin(self) -> None:
        """Start a stretch of training: the next step with recorded answers is checked."""
        self._must_check = self._config.reference_checks > 0
        self._awaited = None
        self.num_checked = 0

    def look(self, batches: Sequence[MicroBatch], join: Callable[[list[Tree]], MicroBatch]) -> None:
        """Choose the answers of a step, if it is the first with some. Those that other weights sampled, and all if training
        passes leave something to chance, are compared at once.

        Args:
            join: makes a micro-batch of trees (one without effect of none).

        Raises:
            LearnerError: an answer's gap is above tolerance; the message has both values.
        """
        if not self._must_check:
            return
        trees = [tree for batch in batches if batch.examples for tree in batch.trees]
        known = self._reference.weights_of_versions()
        used = [answer for tree in trees for answer in tree.answers if self._reference.is_used(answer)]
        versions = [answer.policy_version for answer in used if answer.policy_version in known]
        version = int(self._engine.reduce([max(versions, default=-1)], "max")[0])
        if version < 0:
            return
        self._must_check = False
        checked = {answer for answer in used if answer.policy_version == version}
        chosen = _take_answers(parts(trees, checked.__contains__), self._config.reference_checks)
        weights = known.get(version)
        self._awaited = _Awaited(version=version, answers={answer for tree in chosen for answer in tree.answers})
        if weights is not None or self._by_chance:
            joined = join(chosen)
            with nullcontext() if weights is None else weight_copies.using(self._engine, weights):
                self.passed(joined, self._forward(joined))
            self.settle()

    def passed(self, batch: MicroBatch, logps_L: torch.Tensor) -> None:
        """Compare what of a forward pass is awaited.

        Args:
            logps_L: of `batch.targets`.
        """
        if self._awaited is None:
            return
        answers = batch.answers
        pieces = logps_L.detach().float().cpu().tensor_split(batch.last_token[:-1] + 1)
        compared = [
            _gap(answer, own) for answer, own in zip(answers, pieces, strict=True) if answer in self._awaited.answers
        ]
        self._awaited.num_compared += len(compared)
        self._awaited.gap = max([self._awaited.gap, *compared], key=lambda gap: gap.per_token)

    def settle(self) -> None:
        """Close the step's check. All ranks together.

        Raises:
            LearnerError: an answer's gap is above tolerance; the message has both values.
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
    """Whether a training pass through some modules may differ from the next: by dropout, or by noise of a router."""
    return any(
        isinstance(value, float)
        and value > 0
        and any(word in f"{type(module).__name__}.{name}".lower() for word in _CHANCE)
        for module in modules
        for name, value in vars(module).items()
    )


def _take_answers(trees: Sequence[Tree], number: int) -> list[Tree]:
    """Trees with `number` answers in all, spread over prompts."""
    share = max(1, number // max(1, len(trees)))
    return [replace(tree, answers=tree.answers[:share]) for tree in trees[:number]]


def _gap(answer: Branch, computed: torch.Tensor) -> Gap:
    recorded = torch.from_numpy(answer.rollout.sampled.logprobs.copy())
    if answer.loss_mask is not None:
        sampled = torch.from_numpy(answer.loss_mask.astype(bool))
        recorded, computed = recorded[sampled], computed[sampled]
    difference = float((recorded - computed).abs().mean())
    return Gap(per_token=difference, recorded=float(recorded.sum()), computed=float(computed.sum()))
