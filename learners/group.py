"""All ranks of the learner as Ray actors.

Batches go to the ranks as frames, and steps overlap with the arrival of later batches. This is the only file of the learner
that uses Ray.
"""

from __future__ import annotations

import itertools
import operator
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from learners.config import LearnerConfig
from learners.examples.kinds import kind_of
from learners.metrics import FitMetrics
from learners.plan import FitPlan
from learners.shards import SHARD_LIMITS, batches_of, shards
from rlsys import registry, wire
from rlsys.errors import LearnerError, RlsysError, SyncError
from rlsys.placement import Placement
from rlsys.records import FitReport, Probe, RoundPlan
from rlsys.seeding import generator

MAX_STEPS_AHEAD = 2
"""Largest number of steps that were given to the ranks and are not done yet."""
_POLL_S = 1.0


class _Actor:
    """A rank in its process. It pins itself to its cores first, and imports heavy modules after that."""

    def __init__(self, placement: Placement) -> None:
        placement.apply()
        import torch

        torch.set_num_threads(placement.num_threads)
        self._placement = placement
        self._rank: Any = None

    def address(self) -> tuple[str, int]:
        """A host and a free port where the ranks can meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return ray.util.get_node_ip_address(), probe.getsockname()[1]

    def process(self) -> tuple[int, str]:
        """The id of this process, and that of its node."""
        return os.getpid(), ray.get_runtime_context().get_node_id()

    def start(self, *arguments: Any) -> None:
        from learners.learner import LearnerRank

        self._rank = LearnerRank(*arguments)
        self._placement.settle()

    def call(self, method: str, *arguments: Any, **options: Any) -> Any:
        return operator.attrgetter(method)(self._rank)(*arguments, **options)


class LearnerGroup:
    """`rlsys.contracts.Learner` on any number of ranks.

    group = LearnerGroup(config, objective, policy_folder, placements=[Placement(), Placement()])
    report = group.fit(pairs, plan, version=0)
    group.close()
    """

    def __init__(
        self, config: LearnerConfig, objective: Any, model_path: str, *, placements: Sequence[Placement], seed: int = 0
    ) -> None:
        """
        Args:
            objective: a plug-in of group `objective`.
            model_path: Hugging Face folder of the weights to start from.
            placements: one placement per rank.
            seed: seed of the order of batches after the first epoch, and of dropout.

        Raises:
            LearnerError: a rank did not start before the deadline.
        """
        if len(placements) != config.num_ranks:
            raise ValueError(f"{len(placements)} placements for {config.num_ranks} ranks")
        self._config, self._objective, self._seed = config, objective, seed
        self._ranks = [_start(placement) for placement in placements]
        try:
            ((host, port),) = self._wait([self._ranks[0].address.remote()])
            self._wait(
                [
                    actor.start.remote(
                        config, objective, str(model_path), _rendezvous_of(number, config.num_ranks, host, port)
                    )
                    for number, actor in enumerate(self._ranks)
                ]
            )
        except BaseException:
            self.close()
            raise

    def fit(self, examples: Iterable[Any], plan: RoundPlan, *, version: int) -> FitReport:
        """Take the optimizer steps of a round. The first step begins as soon as there is a full batch.

        Args:
            version: version of the weights that the steps start from.

        Raises:
            LearnerError: a loss is not finite, recorded logprobs do not match the weights, or a rank died.
        """
        return self.train(examples, FitPlan.of_round(plan, policy_version=version, seed=self._seed))

    def train(
        self, examples: Iterable[Any], plan: FitPlan, *, on_step: Callable[[int, float], None] | None = None
    ) -> FitReport:
        """Train on examples as they come; see `fit`.

        Args:
            examples: records of the class that the plan's objective learns from.
            on_step: called with the number and the loss of every step, in order, soon after the step is done.
        """
        self._all("begin", plan)
        metrics = FitMetrics()
        done = itertools.count()

        def finish(step: list[Any]) -> None:
            loss = metrics.add(self._wait(step))
            if on_step is not None:
                on_step(next(done), loss)

        objective = registry.objective.configured(self._objective, plan.options)
        kind = kind_of(objective.consumes)
        batches = batches_of(examples, self._config.batch_size)
        steps = self._steps((kind.completed(batch, objective.needs) for batch in batches), plan)
        waiting: deque[list[Any]] = deque()
        for number, (batch, frames) in enumerate(steps):
            if len(waiting) == MAX_STEPS_AHEAD:
                finish(waiting.popleft())
            options = {"lr": plan.lr_at(number), "batch": batch}
            waiting.append(
                [actor.call.remote("step", frame, **options) for actor, frame in zip(self._ranks, frames, strict=True)]
            )
        while waiting:
            finish(waiting.popleft())
        return metrics.report(self._all("end"))

    def pids(self) -> list[int]:
        """Process ids of the ranks that run on this machine."""
        here = ray.get_runtime_context().get_node_id()
        return [pid for pid, node in self._wait([actor.process.remote() for actor in self._ranks]) if node == here]

    def logprobs(self, probes: Sequence[Probe]) -> list[np.ndarray]:
        """float32 [T] logprobs of every probe's response tokens under the current weights."""
        if not probes:
            return []
        return self._all("logprobs", wire.encode_many(list(probes)))[0]

    def save(self, directory: str) -> None:
        """Write the policy as a Hugging Face folder `policy/` and the optimizer beside it."""
        self._all("save", str(directory))

    def load(self, directory: str) -> None:
        """Restore the state that `save` wrote.

        Raises:
            CheckpointError: the state is missing, or was written with another layout of ranks.
        """
        self._all("load", str(directory))

    def reset(self) -> None:
        """Restore the weights that the learner started from, with a fresh optimizer."""
        self._all("reset")

    def manifest(self, bucket_bytes: int) -> dict[str, Any]:
        """The manifest of a weight update: its buckets, as `rlsys.transports` describes them."""
        return self._wait([self._ranks[0].call.remote("weight_sender.manifest", bucket_bytes)])[0]

    def open_transport(self, transport: Any, num_receivers: int) -> dict[str, Any]:
        """Offer the weights to receivers and return the offer; the first `send` waits until all receivers have joined."""
        return self._wait([self._ranks[0].call.remote("weight_sender.open", transport, num_receivers)])[0]

    def send(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Send the current weights to the receivers.

        Returns:
            `names`, `num_tensors`, `num_bytes`, `digest`, `seconds`.

        Raises:
            SyncError: a receiver is lost or late.
            SyncTimeout: a receiver did not join before the transport's deadline.
        """
        return self._all("weight_sender.send", manifest)[0]

    def close(self) -> None:
        """End the ranks' processes."""
        for actor in self._ranks:
            ray.kill(actor)
        self._ranks = []

    def _steps(self, batches: Iterable[list[Any]], plan: FitPlan) -> Iterator[tuple[int, list[Any]]]:
        """Each batch's number, and its frames, one per rank.

        In the first epoch the batches come in the order of arrival. Later epochs take them from the object store, each in a
        random order of its own.
        """
        kept: list[list[Any]] = []
        for number, batch in enumerate(batches):
            frames = [self._frame(share) for share in shards(batch, self._config.num_ranks)]
            if plan.epochs > 1:
                kept.append(frames)
            yield number, frames
        for epoch in range(1, plan.epochs):
            order = generator(plan.seed, "epoch", plan.policy_version, epoch).permutation(len(kept))
            yield from ((int(again), kept[again]) for again in order)

    def _frame(self, share: list[Any]) -> Any:
        return ray.put(wire.encode_many(share, limits=SHARD_LIMITS)) if share else None

    def _all(self, method: str, *arguments: Any) -> list[Any]:
        return self._wait([actor.call.remote(method, *arguments) for actor in self._ranks])

    def _wait(self, references: Sequence[Any]) -> list[Any]:
        """Results of one call on each of the first ranks, in order.

        Raises:
            LearnerError: a rank died or did not answer before the deadline.
            RlsysError: a rank raised it. All ranks are then ended, because the others may wait for the failed one. A failed
                weight update is the exception: it leaves every rank intact, and no rank is ended.
        """
        deadline = time.monotonic() + self._config.deadline_s
        pending = list(references)
        results: dict[int, Any] = {}
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=_POLL_S)
            for reference in done:
                rank = references.index(reference)
                results[rank] = self._get(reference, rank)
            if pending and time.monotonic() > deadline:
                late = [references.index(reference) for reference in pending]
                self.close()
                raise LearnerError(f"learner ranks {late} did not answer within {self._config.deadline_s:g} s")
        for result in results.values():
            if isinstance(result, SyncError):
                raise result
        return [results[rank] for rank in range(len(references))]

    def _get(self, reference: Any, rank: int) -> Any:
        try:
            return ray.get(reference, timeout=self._config.deadline_s)
        except RayActorError as error:
            self.close()
            raise LearnerError(f"learner rank {rank} died: {error}") from error
        except GetTimeoutError as error:
            self.close()
            raise LearnerError(f"the answer of learner rank {rank} could not be fetched") from error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SyncError):
                return cause
            self.close()
            if isinstance(cause, RlsysError):
                raise cause from error
            raise LearnerError(f"learner rank {rank} failed: {cause!r}") from error


def _rendezvous_of(rank: int, world_size: int, address: str, port: int) -> Any:
    from learners.rendezvous import Rendezvous

    return Rendezvous(rank=rank, world_size=world_size, address=address, port=port)


def _start(placement: Placement) -> Any:
    options = {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "max_restarts": 0,
    }
    return ray.remote(_Actor).options(**options).remote(placement)
