"""Log-probabilities of the reference policy.

Where the reference is the policy that sampled an answer, they came with the answer, and a sample of them is checked
(`reference_check.py`). Otherwise they are computed with weights kept for it:

    rule       reference of an answer sampled by version v            weights kept
    previous   v itself: recorded, if the answer was sampled for this
               round; else the weights at the round's start           a copy of those, where a replay brings others
    initial    version 0: recorded, if v is 0                         the first ones, or the LoRA adapter switched off
    ema        the moving average                                     the average

Versions are never counted with: a refused round uses two of them, so their differences say nothing about rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from learners import weight_copies
from learners.config import LearnerConfig
from learners.deepspeed_backend import Engine
from learners.experience import answer_sums
from learners.memory import keeps_start
from learners.micro_batch import MicroBatch
from learners.plan import FitPlan
from learners.trees import Tree
from rlsys.errors import ConfigError, LearnerError

_AVERAGE = "average"
"""Name of the moving average in a checkpoint; the weights at starts have their versions' numbers."""

Forward = Callable[[MicroBatch], torch.Tensor]
"""Branch token log-probabilities [L] of a micro-batch on the CPU, without gradient, under whatever weights are in
place.
"""


class Reference:
    """A rank's reference weights, and the rule of the current stretch of training."""

    def __init__(self, engine: Engine, config: LearnerConfig, forward: Forward) -> None:
        self._engine, self._config, self._forward = engine, config, forward
        self._has_adapter = config.has_adapter
        self.initial = weight_copies.take(engine) if config.initial_copy and not self._has_adapter else None
        self.average = weight_copies.take(engine, dtype=torch.float32) if config.ema_decay else None
        self._starts: dict[int, weight_copies.Weights] = {}
        """Weights at the start of this stretch and of as many before it as the lag, by version."""
        self._plan: FitPlan | None = None
        self._has_stepped = False

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
        self._has_stepped = False
        # Versions grow from stretch to stretch, by one or, after a refusal, by two: the last `lag` of them are counted.
        earlier = sorted(version for version in self._starts if version < plan.policy_version)
        self._starts = {version: self._starts[version] for version in earlier[max(0, len(earlier) - plan.lag) :]}
        if keeps_start(lag=plan.lag, reference=plan.reference, accumulated=plan.accumulated):
            self._starts[plan.policy_version] = weight_copies.take(self._engine)

    def kept(self) -> dict[str, weight_copies.Weights]:
        """What a checkpoint must hold for `restore`; the initial copy comes from the model's folder."""
        starts = {str(version): weights for version, weights in self._starts.items()}
        return starts if self.average is None else {_AVERAGE: self.average, **starts}

    def restore(self, kept: dict[str, weight_copies.Weights]) -> None:
        """Take what belongs to the weights now in place, instead of what belonged to those before; the initial copy
        stays. The weights at starts stay as well: a refused round's weights are gone, and answers that other weights gave
        before it are still to come.

        Args:
            kept: from `kept`; a moving average that is not in it begins anew with the weights in place.
        """
        self._starts |= {int(name): weights for name, weights in kept.items() if name != _AVERAGE}
        if self.average is not None:
            self.average = kept.get(_AVERAGE) or weight_copies.take(self._engine, dtype=torch.float32)

    def after_step(self) -> None:
        """Let the moving average follow: the weights in place have changed."""
        self._has_stepped = True
        if self.average is not None:
            weight_copies.move_average(self.average, self._engine, self._config.ema_decay)

    def needs_forward(self, batches: Sequence[MicroBatch]) -> bool:
        """Whether some answer's reference is not the policy that sampled it."""
        return any(not self.is_recorded(tree) for batch in batches if batch.examples for tree in batch.trees)

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
                keep = torch.tensor([self.is_recorded(tree) for tree in batch.trees for _ in tree.answers])
                result.append(torch.where(keep, known, answer_sums(batch, self._forward(batch))))
        return result

    def weights_of_versions(self) -> dict[int, weight_copies.Weights | None]:
        """Versions whose weights are at hand; `None` stands for those in place."""
        first = {0: self.initial} if self.initial is not None else {}
        in_place = {} if self._has_stepped else {self._plan.policy_version: None}
        return {**first, **self._starts, **in_place}

    def is_recorded(self, tree: Tree) -> bool:
        """Whether the reference of a tree's answers is the policy that sampled them."""
        plan = self._plan
        if tree.policy_version is None:  # what a rank works on while others still have examples
            return False
        if plan.reference == "previous":
            # Outside of rounds only the version tells whether the weights in place at the start gave the answer.
            return tree.policy_version == plan.policy_version if plan.round is None else tree.round == plan.round
        return plan.reference == "initial" and tree.policy_version == 0

    @property
    def knows_initial(self) -> bool:
        """Whether the weights of version 0 are at hand."""
        return self._has_adapter or self.initial is not None

    @contextmanager
    def initial_weights(self) -> Iterator[None]:
        """The module computes with the weights of version 0 inside. All ranks enter together."""
        if self._has_adapter:
            with self._engine.without_adapter():
                yield
        else:
            with weight_copies.using(self._engine, self.initial):
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
                f"reference={plan.reference}: answers that were not sampled for round {plan.round}, and no weights kept "
                "for them; a replay keeps those of the round's start"
            )
        with weight_copies.using(self._engine, kept[plan.reference]):
            yield


def _recorded_sums(batch: MicroBatch) -> torch.Tensor:
    sums = [answer.rollout.logprob if answer.rollout else 0.0 for tree in batch.trees for answer in tree.answers]
    return torch.tensor(sums, dtype=torch.float32)
