"""Logprobs of the reference policy.

Where the reference is the policy that sampled a response, the logprobs were recorded with the response, and a sample of them
is checked (`reference_check.py`). Otherwise they are computed with weights that are kept for this purpose:

    rule       reference of a response sampled by version v           weights kept
    previous   v itself: recorded, if the response was sampled for
               this round; else the weights at the round's start      a copy of those, if there are such responses
    initial    version 0: recorded, if v is 0                         the first ones, or the LoRA adapter switched off
    ema        the moving average                                     the average

Differences between versions are never used to count rounds, because a refused round uses two versions. A response that no
engine sampled, or that was sampled for another prompt, has no recorded logprobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

from learners import weight_copies
from learners.answers import recorded_logprobs
from learners.config import LearnerConfig
from learners.deepspeed_backend import Engine
from learners.memory import keeps_start
from learners.micro_batch import MicroBatch
from learners.plan import FitPlan
from learners.trees import Branch, Tree, parts
from rlsys.errors import ConfigError, LearnerError

_AVERAGE = "average"
"""Name of the moving average in a checkpoint. The weights at starts of stretches are named by their version's number."""

Forward = Callable[[MicroBatch], torch.Tensor]
"""A function that returns the logprobs [L] of a micro-batch's response tokens.

The result is on the CPU and has no gradient. It is computed with the weights that are in place at the time of the call.
"""


class Reference:
    """A rank's reference weights, and the rule of the current stretch of training."""

    def __init__(self, engine: Engine, config: LearnerConfig, forward: Forward) -> None:
        self._engine, self._config, self._forward = engine, config, forward
        self._has_adapter = config.has_adapter
        self.initial = weight_copies.take(engine) if config.initial_copy and not self._has_adapter else None
        self.average = weight_copies.take(engine, dtype=torch.float32) if config.ema_decay else None
        self._starts: dict[int, weight_copies.Weights] = {}
        """Weights at the start of this stretch and of as many stretches before it as the lag says, by version."""
        self._plan: FitPlan | None = None
        self._needs: frozenset[str] = frozenset()
        self._has_stepped = False

    def begin(self, plan: FitPlan, needs: frozenset[str]) -> None:
        """Start a stretch of training, before its first step.

        Args:
            needs: the needs of the objective. If `reference` is not among them, the plan's rule is ignored.

        Raises:
            ConfigError: the rule needs weights that are not kept.
        """
        rule = plan.reference if "reference" in needs else None
        if rule == "initial" and not self.knows_initial:
            raise ConfigError("reference=initial needs learner.initial_copy=true, or LoRA")
        if rule == "ema" and self.average is None:
            raise ConfigError("reference=ema needs learner.ema_decay > 0")
        self._plan, self._needs = plan, needs
        self._has_stepped = False
        # Versions grow from stretch to stretch by one, or by two after a refusal. So the last `lag` entries are taken, and no
        # difference of versions is computed.
        earlier = sorted(version for version in self._starts if version < plan.policy_version)
        self._starts = {version: self._starts[version] for version in earlier[max(0, len(earlier) - plan.lag) :]}
        has_others = plan.accumulated or self._config.start_copy
        if keeps_start(lag=plan.lag, reference=rule, needs=needs, has_others=has_others):
            self._starts[plan.policy_version] = weight_copies.take(self._engine)

    def kept(self) -> dict[str, weight_copies.Weights]:
        """The weights that a checkpoint must hold for `restore`. The initial copy is not among them: it is taken from the
        model's folder."""
        starts = {str(version): weights for version, weights in self._starts.items()}
        return starts if self.average is None else {_AVERAGE: self.average, **starts}

    def restore(self, kept: dict[str, weight_copies.Weights]) -> None:
        """Restore the kept weights that belong to a checkpoint, after its weights have been put in place.

        The initial copy stays. The weights at starts that are here stay as well, besides those of the checkpoint: a refused
        round's weights are gone, but responses that earlier weights sampled before the refusal are still to come.

        Args:
            kept: the result of `kept`. If it has no moving average, the average begins anew with the weights in place.
        """
        self._starts |= {int(name): weights for name, weights in kept.items() if name != _AVERAGE}
        if self.average is not None:
            self.average = kept.get(_AVERAGE) or weight_copies.take(self._engine, dtype=torch.float32)

    def after_step(self) -> None:
        """Update the moving average, because an optimizer step has changed the weights in place."""
        self._has_stepped = True
        if self.average is not None:
            weight_copies.move_average(self.average, self._engine, self._config.ema_decay)

    def needs_forward(self, batches: Sequence[MicroBatch]) -> bool:
        """Whether there is a response whose reference is not the policy that sampled it."""
        return any(not self.is_recorded(answer) for batch in batches if batch.examples for answer in batch.answers)

    def logps(
        self, batches: Sequence[MicroBatch], *, forward: bool, join: Callable[[list[Tree]], MicroBatch]
    ) -> list[torch.Tensor]:
        """Reference logprobs [L] of every micro-batch's response tokens.

        Args:
            forward: whether any rank needs a forward pass. All ranks then make one, over the responses that need it.
            join: makes one micro-batch of some trees; without trees it makes one that has no effect.
        """
        recorded = [recorded_logprobs(batch) for batch in batches]
        if not forward:
            return recorded
        plan = self._plan
        if plan.reference == "previous" and not self._has_stepped and plan.policy_version not in self._starts:
            self._starts[plan.policy_version] = weight_copies.take(self._engine)
        with self._weights():
            for batch, known in zip(batches, recorded, strict=True):
                joined = join(parts(batch.trees, lambda answer: not self.is_recorded(answer)))
                unknown = torch.tensor([not self.is_recorded(answer) for answer in batch.answers])
                computed = self._forward(joined)
                if unknown.any():
                    known[unknown[batch.answer_of_token]] = computed
        return recorded

    def weights_of_versions(self) -> dict[int, weight_copies.Weights | None]:
        """The weights that are available, by version; `None` stands for the weights in place."""
        first = {0: self.initial} if self.initial is not None else {}
        in_place = {} if self._has_stepped else {self._plan.policy_version: None}
        return {**first, **self._starts, **in_place}

    def is_recorded(self, answer: Branch) -> bool:
        """Whether the reference of a response is the policy that sampled it, so that its logprobs are recorded."""
        plan, version = self._plan, answer.policy_version
        if version is None:
            return False
        if plan.reference == "previous":
            # Outside of rounds only the version tells whether the weights at the start of the stretch sampled the response.
            return version == plan.policy_version if plan.round is None else answer.round == plan.round
        return plan.reference == "initial" and version == 0

    def is_used(self, answer: Branch) -> bool:
        """Whether the objective receives the logprobs that were recorded with a response."""
        if "old" in self._needs:
            return answer.policy_version is not None
        return self.is_recorded(answer)

    @property
    def knows_initial(self) -> bool:
        """Whether the weights of version 0 are available."""
        return self._has_adapter or self.initial is not None

    @contextmanager
    def initial_weights(self) -> Iterator[None]:
        """Context in which the module computes with the weights of version 0. All ranks must enter it together."""
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
                f"reference={plan.reference}: answers that were not sampled for round {plan.round} came after the first step, "
                "and no weights are kept for them; learner.start_copy=true keeps those of the round's start"
            )
        with weight_copies.using(self._engine, kept[plan.reference]):
            yield
