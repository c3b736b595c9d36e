"""Log-probabilities of the reference policy.

Where the reference is the policy that sampled an answer, they came with the answer, and a sample of them is checked
against a forward pass before anything is trained. Otherwise they are computed with weights kept for it:

    rule       reference of an answer sampled by version v            weights kept
    previous   v itself: recorded, if v is this round's (or its lag's)
               else the weights at the round's start                  a copy of those, for accumulated data
    initial    version 0: recorded, if v is 0                         the first ones, or the LoRA adapter switched off
    ema        the moving average                                     the average
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch

from learners import snapshots
from learners.config import LearnerConfig
from learners.deepspeed_backend import Engine
from learners.experience import answer_sums
from learners.micro_batch import MicroBatch
from learners.plan import FitPlan
from learners.trees import Tree
from rlsys.errors import ConfigError, LearnerError

_AVERAGE = "average"
"""Name of the moving average in a checkpoint; the weights at starts have their versions' numbers."""

Forward = Callable[[MicroBatch], torch.Tensor]
"""Answer token log-probabilities [L] of a micro-batch on the CPU, without gradient, under whatever weights are in
place.
"""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """Recorded and computed log-probabilities of the answer on which they differ most."""

    per_token: float
    """Mean absolute difference over the answer's tokens, nats; 0 where nothing was compared."""
    recorded: float = 0.0
    """Sum over the answer, nats."""
    computed: float = 0.0


class Reference:
    """A rank's reference weights, and the rule of the current stretch of training."""

    def __init__(self, engine: Engine, config: LearnerConfig, forward: Forward) -> None:
        self._engine, self._config, self._forward = engine, config, forward
        self._has_adapter = config.has_adapter
        self.initial = snapshots.take(engine) if config.initial_copy and not self._has_adapter else None
        self.average = snapshots.take(engine, dtype=torch.float32) if config.ema_decay else None
        self._starts: dict[int, snapshots.Weights] = {}
        """Weights at the start of this stretch and of as many before it as the lag."""
        self._plan: FitPlan | None = None
        self._must_check = False

    def begin(self, plan: FitPlan) -> None:
        """Start a stretch of training, before its first step.

        Raises:
            ConfigError: the rule needs weights that are not kept.
        """
        if plan.reference == "initial" and not self.knows_initial:
            raise ConfigError("reference=initial needs learner.initial_copy=true, or LoRA")
        if plan.reference == "ema" and self.average is None:
            raise ConfigError("reference=ema needs learner.ema_decay > 0")
        self._plan = plan
        self._must_check = self._config.reference_checks > 0
        self._starts = {v: w for v, w in self._starts.items() if v >= plan.policy_version - plan.lag}
        if plan.lag or (plan.accumulated and plan.reference == "previous"):
            self._starts[plan.policy_version] = snapshots.take(self._engine)

    def kept(self) -> dict[str, snapshots.Weights]:
        """What a checkpoint must hold for `restore`; the initial copy comes from the model's folder."""
        starts = {str(version): weights for version, weights in self._starts.items()}
        return starts if self.average is None else {_AVERAGE: self.average, **starts}

    def restore(self, kept: dict[str, snapshots.Weights]) -> None:
        """Take what belongs to the weights now in place, instead of what belonged to those before; the initial copy
        stays.

        Args:
            kept: from `kept`; a moving average that is not in it begins anew with the weights in place.
        """
        self._starts = {int(name): weights for name, weights in kept.items() if name != _AVERAGE}
        if self.average is not None:
            self.average = kept.get(_AVERAGE) or snapshots.take(self._engine, dtype=torch.float32)

    def after_step(self) -> None:
        """Let the moving average follow."""
        if self.average is not None:
            snapshots.move_average(self.average, self._engine, self._config.ema_decay)

    def needs_forward(self, batches: Sequence[MicroBatch]) -> bool:
        """Whether some answer's reference is not the policy that sampled it."""
        return any(not self._is_recorded(tree) for batch in batches if batch.examples for tree in batch.trees)

    def logps(self, batches: Sequence[MicroBatch], *, forward: bool) -> list[torch.Tensor]:
        """Sums per answer [A] of every micro-batch.

        Args:
            forward: whether any rank needs a forward pass: all make one then.
        """
        recorded = [_recorded_sums(batch) for batch in batches]
        if not forward:
            return recorded
        result = []
        with self._weights():
            for batch, known in zip(batches, recorded, strict=True):
                keep = torch.tensor([self._is_recorded(tree) for tree in batch.trees for _ in tree.answers])
                result.append(torch.where(keep, known, answer_sums(batch, self._forward(batch))))
        return result

    def check(self, batches: Sequence[MicroBatch], join: Callable[[list[Tree]], MicroBatch]) -> int:
        """Compare recorded log-probabilities with a forward pass, once per stretch, at its first chance. All ranks
        together.

        Args:
            join: makes a micro-batch of trees (one without effect of none).

        Returns:
            How many answers this rank compared.

        Raises:
            LearnerError: an answer's gap is above tolerance; the message has both values.
        """
        if not self._must_check:
            return 0
        trees = [tree for batch in batches if batch.examples for tree in batch.trees if self._is_recorded(tree)]
        known = self._weights_of_versions()
        versions = [tree.policy_version for tree in trees if tree.policy_version in known]
        version = int(self._engine.reduce([max(versions, default=-1)], "max")[0])
        if version < 0:
            return 0
        self._must_check = False
        chosen = _take_answers([t for t in trees if t.policy_version == version], self._config.reference_checks)
        weights = known.get(version)
        with nullcontext() if weights is None else snapshots.using(self._engine, weights):
            gap = _largest_gap(chosen, join(chosen), self._forward)
        self._refuse(gap, version)
        return sum(len(tree.answers) for tree in chosen)

    def _weights_of_versions(self) -> dict[int, snapshots.Weights | None]:
        """Versions whose weights are at hand; `None` stands for those in place."""
        first = {0: self.initial} if self.initial is not None else {}
        return {**first, **self._starts, self._plan.policy_version: None}

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

    def _is_recorded(self, tree: Tree) -> bool:
        plan = self._plan
        if tree.policy_version is None:  # what a rank works on while others still have examples
            return False
        if plan.reference == "previous":
            return tree.policy_version >= plan.policy_version - plan.lag
        return plan.reference == "initial" and tree.policy_version == 0

    @property
    def knows_initial(self) -> bool:
        """Whether the weights of version 0 are at hand."""
        return self._has_adapter or self.initial is not None

    @contextmanager
    def initial_weights(self) -> Iterator[None]:
        """The module computes with the weights of version 0 inside. All ranks enter together."""
        if self._has_adapter:
            with self._engine.module.model.disable_adapter():
                yield
        else:
            with snapshots.using(self._engine, self.initial):
                yield

    @contextmanager
    def _weights(self) -> Iterator[None]:
        plan = self._plan
        if plan.reference == "initial":
            with self.initial_weights():
                yield
            return
        kept = {"ema": self.average, "previous": self._starts.get(plan.policy_version)}
        if kept[plan.reference] is None:
            raise LearnerError(
                f"reference={plan.reference}: answers older than version {plan.policy_version - plan.lag}, and no "
                "weights kept for them; schedule.data=accumulated keeps those of the round's start"
            )
        with snapshots.using(self._engine, kept[plan.reference]):
            yield


def _recorded_sums(batch: MicroBatch) -> torch.Tensor:
    sums = [answer.rollout.logprob if answer.rollout else 0.0 for tree in batch.trees for answer in tree.answers]
    return torch.tensor(sums, dtype=torch.float32)


def _take_answers(trees: Sequence[Tree], number: int) -> list[Tree]:
    """Trees with `number` answers in all, spread over prompts."""
    chosen = []
    for tree in trees[:number]:
        share = max(1, number // max(1, len(trees)))
        chosen.append(
            Tree(
                prompt_ids=tree.prompt_ids,
                images=tree.images,
                answers=tree.answers[:share],
                policy_version=tree.policy_version,
            )
        )
    return chosen


def _largest_gap(trees: Sequence[Tree], batch: MicroBatch, forward: Forward) -> Gap:
    computed = forward(batch)
    answers = [answer for tree in trees for answer in tree.answers]
    gaps = [Gap(per_token=0.0)]
    start = 0
    for answer in answers:
        recorded = torch.from_numpy(answer.rollout.logprobs.copy())
        own = computed[start : start + len(recorded)]
        start += len(recorded)
        difference = float((recorded - own).abs().mean())
        gaps.append(Gap(per_token=difference, recorded=float(recorded.sum()), computed=float(own.sum())))
    return max(gaps, key=lambda gap: gap.per_token)
