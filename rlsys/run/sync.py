"""Weights from the learner to every engine, and the proof that they arrived.

    sync = WeightSync(learner=learner, rollouts=rollouts, transport=Gloo())
    report = sync.publish(3)

A publish is proven twice: every engine reports names, count, bytes and digest of what it loaded, which must be those
of what was sent; then engines and learner score the same fixed sequences. A digest says that the bytes arrived, a score
says that they are where they belong and that nothing computed with the old ones is used any more.
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
"""What an engine must report as the sender does; the shortest to read first."""


TOLERANCES = {"fp32": 1e-3, "bf16": 0.5}
"""Nats between an engine and the learner on one token, by the learner's precision. bf16 keeps 8 bits of a logit: of 15,000
tokens of the scenes policy half were equal, 99% within 0.03 and all within 0.11. Weights in a wrong place cost nats.
"""


class SendingLearner(Protocol):
    """What a weight update needs of the learner."""

    def open_transport(self, transport: Any, num_receivers: int) -> dict[str, Any]: ...

    def manifest(self, bucket_bytes: int) -> dict[str, Any]: ...

    def send(self, manifest: dict[str, Any]) -> dict[str, Any]: ...

    def logprobs(self, probes: Sequence[Probe]) -> list[Any]: ...


class ReceivingStage(Protocol):
    """What a weight update needs of the engines."""

    receivers_per_worker: int

    def members(self) -> tuple[str, ...]: ...

    def connect(self, offers: Sequence[dict[str, Any]]) -> None: ...

    def update(self, manifest: dict[str, Any], version: int) -> list[dict[str, Any]]: ...

    def probes(self) -> list[Probe]: ...

    def logprobs(self, probes: Sequence[Probe]) -> list[list[Any]]: ...


class WeightSync:
    """`rlsys.contracts.Weights`.

    A worker that dies in a publish is replaced by the stage; the publish is then done once more, for all. Versions go
    up; one version per worker is not supported.
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
            tolerance: largest difference between engine and learner on a probe's token, nats.
            deadline_s: for the transfer and the probes together.

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
        """Send, load, empty caches, prove.

        Raises:
            SyncError: what arrived is not what was sent, the probe gap is above tolerance, or workers died twice.
            SyncTimeout: not done before the deadline.
        """
        if self._version is not None and version <= self._version:
            raise SyncError(f"version {version} cannot be published after version {self._version}")
        started = time.monotonic()
        try:
            sent, gap, num_tokens = self._attempt(version)
        except WorkerDied:
            # The stage has put another worker in its place, which holds older weights: all get these once more.
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
        """What was sent, the largest difference in nats, and the number of tokens compared.

        The learner scores the probes while the engines still load what it has sent.
        """
        probes = self._probes(version)
        members = self._rollouts.members()
        offers = self._offers(members)
        self._connected = ()  # until this update has ended well, the connection cannot be trusted
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
        """One per worker, or none if all are connected since an earlier update."""
        if tuple(members) == self._connected:
            return []
        each = self._rollouts.receivers_per_worker
        offer = self._learner.open_transport(self._transport, each * len(members))
        return [{**offer, "receiver": number * each} for number in range(len(members))]

    def _together(self, version: int, **work: Callable[[], Any]) -> list[Any]:
        """Results of both ends' work, which wait for each other.

        Raises:
            SyncTimeout: one is not done before the deadline.
            Exception: what one of them raised; of both, a dead worker before anything else, and last that one waited in vain
                for the other.
        """
        pool = ThreadPoolExecutor(len(work), thread_name_prefix="sync")
        try:
            futures: dict[Future, str] = {pool.submit(task): name for name, task in work.items()}
            done, late = wait(futures, timeout=self._deadline_s)
        finally:
            pool.shutdown(wait=False)
        errors = sorted((future.exception() for future in done if future.exception()), key=_how_late)
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
        """In nats."""
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


def _how_late(error: BaseException) -> int:
    """0 for what may have caused other errors, 2 for what others cause."""
    return 0 if isinstance(error, WorkerDied) else 2 if isinstance(error, SyncTimeout) else 1


def _gap(ours: Any, theirs: Any) -> tuple[float, int]:
    """Largest difference and where; not-a-number counts as larger than anything."""
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
