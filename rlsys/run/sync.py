"""Weight updates from the learner to every engine, and the proof that the weights arrived.

    sync = WeightSync(learner=learner, rollouts=rollouts, transport=Gloo())
    report = sync.publish(3)

An update is proven twice. First, every engine reports names, count, bytes and digest of the weights that it loaded, which must
equal those of the weights that were sent. Then the engines and the learner compute the logprobs of the same fixed sequences.
The digest proves that the bytes arrived. The logprobs prove that the weights are in the right places, and that no cached
result of the old weights is in use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np

from rlsys.errors import ConfigError, SyncError, SyncTimeout, WorkerDied
from rlsys.records import Probe, SyncReport

CHECKED = ("num_tensors", "num_bytes", "digest", "names")
"""Keys in which the report of an engine must equal the report of the sender. The shortest values come first."""

TOLERANCES = {"fp32": 1e-3, "bf16": 0.5}
"""Largest allowed difference, in nats, between the logprobs of an engine and of the learner on one token, by the learner's
precision. bf16 keeps 8 bits of a logit: on 15,000 tokens of the scenes policy, half of the logprobs were equal, 99% were within
0.03 and all within 0.11. Weights in wrong places cause differences of whole nats.
"""


class SendingLearner(Protocol):
    """The methods of the learner that a weight update uses."""

    def open_transport(self, transport: Any, num_receivers: int) -> dict[str, Any]: ...

    def manifest(self, bucket_bytes: int) -> dict[str, Any]: ...

    def send(self, manifest: dict[str, Any]) -> dict[str, Any]: ...

    def logprobs(self, probes: Sequence[Probe]) -> list[Any]: ...


class ReceivingStage(Protocol):
    """The methods of the rollout stage that a weight update uses."""

    receivers_per_worker: int

    def members(self) -> tuple[str, ...]: ...

    def connect(self, offers: Sequence[dict[str, Any]]) -> None: ...

    def update(self, manifest: dict[str, Any], version: int) -> list[dict[str, Any]]: ...

    def probes(self) -> list[Probe]: ...

    def logprobs(self, probes: Sequence[Probe]) -> list[list[Any]]: ...


class WeightSync:
    """The implementation of `rlsys.contracts.Weights`.

    If a worker dies during an update, the stage replaces it, and the update is repeated once for all workers. Versions must
    increase. Different versions on different workers are not supported.
    """

    def __init__(
        self,
        *,
        learner: SendingLearner,
        rollouts: ReceivingStage,
        transport: Any,
        tolerance: float = TOLERANCES["fp32"],
        deadline_s: float = 300.0,
    ) -> None:
        """
        Args:
            transport: a plug-in of group `transport`.
            tolerance: largest difference in nats between the logprobs of engine and learner on a token of a probe.
            deadline_s: time limit of the transfer and the probes together.

        Raises:
            ConfigError: tolerance or deadline is not positive.
        """
        for name, value in (("tolerance", tolerance), ("deadline_s", deadline_s)):
            if not value > 0:
                raise ConfigError(f"sync.{name} must be > 0, got {value}")
        self._learner = learner
        self._rollouts = rollouts
        self._transport = transport
        self._tolerance = tolerance
        self._deadline_s = deadline_s
        self._connected: tuple[str, ...] = ()
        self._version: int | None = None

    def publish(self, version: int) -> SyncReport:
        """Send the learner's weights, load them in every engine, empty the engines' caches, and prove the update.

        Raises:
            SyncError: an engine did not receive what was sent, the probe gap is above the tolerance, workers died in both
                attempts, or `version` is not above the last one.
            SyncTimeout: the update was not complete before the deadline.
        """
        if self._version is not None and version <= self._version:
            raise SyncError(f"version {version} cannot be published after version {self._version}")
        started = time.monotonic()
        try:
            sent, gap, num_tokens = self._attempt(version)
        except WorkerDied:
            # The stage has replaced the worker. The new worker holds older weights, so all workers get the new ones once more.
            sent, gap, num_tokens = self._second_attempt(version)
        self._version = version
        return SyncReport(
            version=version,
            num_tensors=sent["num_tensors"],
            num_bytes=sent["num_bytes"],
            digest=sent["digest"],
            seconds=time.monotonic() - started,
            max_logprob_gap=gap,
            num_probe_tokens=num_tokens,
        )

    def _attempt(self, version: int) -> tuple[dict[str, Any], float, int]:
        """The sender's report, the largest difference in nats, and the number of compared tokens.

        The learner computes the logprobs of the probes while the engines still load the weights.
        """
        probes = self._probes(version)
        members = self._rollouts.members()
        offers = self._offers(members)
        self._connected = ()  # the connection counts as broken until this update has succeeded
        manifest = self._learner.manifest(self._transport.bucket_bytes)

        def engines() -> tuple[list[dict[str, Any]], list[list[Any]]]:
            if offers:
                self._rollouts.connect(offers)
            reports = self._rollouts.update(manifest, version)
            return reports, self._rollouts.logprobs(probes) if probes else []

        def learner() -> tuple[dict[str, Any], list[Any]]:
            return self._learner.send(manifest), self._learner.logprobs(probes) if probes else []

        (reports, found), (sent, expected) = self._together(version, engines=engines, learner=learner)
        self._compare(version, members, reports, sent)
        gap = self._largest_gap(version, probes, found, expected)
        self._connected = members
        return sent, gap, sum(len(probe.response_token_ids) for probe in probes)

    def _second_attempt(self, version: int) -> tuple[dict[str, Any], float, int]:
        try:
            return self._attempt(version)
        except WorkerDied as error:
            raise SyncError(f"version {version}: a worker died in both attempts to update it: {error}") from error

    def _probes(self, version: int) -> list[Probe]:
        probes = self._rollouts.probes()
        if not probes:
            raise SyncError(f"version {version}: there is no probe, so that the update cannot be proven")
        return probes

    def _offers(self, members: Sequence[str]) -> list[dict[str, Any]]:
        """One offer per worker, or none if all workers are still connected from an earlier update."""
        if tuple(members) == self._connected:
            return []
        each = self._rollouts.receivers_per_worker
        offer = self._learner.open_transport(self._transport, each * len(members))
        return [{**offer, "receiver": number * each} for number in range(len(members))]

    def _together(self, version: int, **work: Callable[[], Any]) -> list[Any]:
        """Run the tasks of both sides at the same time, because they wait for each other, and return their results.

        Raises:
            SyncTimeout: a task was not done before the deadline.
            Exception: the error of a task. If both tasks failed, the death of a worker has precedence over other errors, and
                every other error over a timeout, which may only be a consequence of the other task's error.
        """
        pool = ThreadPoolExecutor(len(work), thread_name_prefix="sync")
        try:
            futures: dict[Future, str] = {pool.submit(task): name for name, task in work.items()}
            done, late = wait(futures, timeout=self._deadline_s)
        finally:
            pool.shutdown(wait=False)
        errors = sorted((future.exception() for future in done if future.exception()), key=_precedence)
        if errors:
            raise errors[0]
        if late:
            names = " and ".join(futures[future] for future in late)
            raise SyncTimeout(f"version {version}: {names} not done within {self._deadline_s:g} s")
        return [future.result() for future in futures]

    def _compare(self, version: int, members: Sequence[str], reports: list[dict], sent: dict) -> None:
        if len(reports) != len(members):
            raise SyncError(f"version {version}: {len(reports)} of {len(members)} workers reported")
        for member, report in zip(members, reports, strict=True):
            if report["version"] != version:
                raise SyncError(f"{member} holds version {report['version']} after version {version} was published")
            for key in CHECKED:
                if report[key] != sent[key]:
                    raise SyncError(f"version {version}: {_difference(member, key, report[key], sent[key])}")

    def _largest_gap(
        self, version: int, probes: Sequence[Probe], engines: Sequence[list[Any]], learner: Sequence[Any]
    ) -> float:
        """The largest difference between the logprobs of an engine and of the learner, in nats.

        Raises:
            SyncError: a difference is above the tolerance.
        """
        largest = 0.0
        for member, scores in zip(self._rollouts.members(), engines, strict=True):
            for number, (ours, theirs) in enumerate(zip(scores, learner, strict=True)):
                gap, place = _gap(ours, theirs)
                if not gap <= self._tolerance:
                    where = f"probe {number} (prompt {probes[number].prompt.id!r}), token {place}"
                    raise SyncError(
                        f"version {version}: {where}: {member} says {float(ours[place])!r} nats, the learner "
                        f"{float(theirs[place])!r}: {gap:.3g} apart, tolerance {self._tolerance:g}"
                    )
                largest = max(largest, gap)
        return largest


def _precedence(error: BaseException) -> int:
    """Sort key of errors: 0 for an error that may have caused the others, 2 for one that may be their consequence."""
    return 0 if isinstance(error, WorkerDied) else 2 if isinstance(error, SyncTimeout) else 1


def _gap(ours: Any, theirs: Any) -> tuple[float, int]:
    """The largest difference and its position. A difference that is not a number counts as infinite."""
    one, two = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if one.shape != two.shape or not one.size:
        raise SyncError(f"a probe was scored at {one.shape} places by an engine, {two.shape} by the learner")
    differences = np.abs(one - two)
    differences[np.isnan(differences)] = np.inf
    place = int(differences.argmax())
    return float(differences[place]), place


def _difference(member: str, key: str, got: Any, sent: Any) -> str:
    if key == "names":
        places = [i for i, pair in enumerate(zip(got, sent, strict=True)) if pair[0] != pair[1]]
        return f"{member} loaded {got[places[0]]!r} where {sent[places[0]]!r} was sent ({len(places)} names differ)"
    return f"{member} loaded {key} {got}, sent was {sent}"
