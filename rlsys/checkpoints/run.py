"""The weights of a run on disk: the checkpoint of every round, and the candidate that a gate may still refuse."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path

from rlsys.checkpoints import checkpoint
from rlsys.common import files
from rlsys.contracts import Gate, Learner
from rlsys.errors import CheckpointError
from rlsys.records import RoundReport

CANDIDATE = ".candidate"
"""Prefix of the names of folders whose weights do not belong to a checkpoint."""
OF_A_CHECKPOINT = ("manifest.json", "state.json")
"""Files of a checkpoint that the learner did not write."""


class Checkpoints:
    """Keeps the weights that the engines hold on disk, so that a worker can be replaced at any time.

    checkpoints.stage(learner, version, executor=...)    # begins to write the new weights, which the gate has not judged yet
    checkpoints.current()                                # where a worker that starts now finds its weights
    checkpoints.go_back(learner, version)                # after a refusal: the last accepted weights, under a new version
    checkpoints.commit(report, gate, ...)                # the round's checkpoint, atomic and hashed
    """

    def __init__(
        self,
        directory: Path,
        *,
        initial_policy: Path,
        good: Path | None = None,
        keep: int = 0,
        fixed_state: dict | None = None,
    ) -> None:
        """
        Args:
            directory: `checkpoints/` of the run.
            initial_policy: Hugging Face folder of version 0.
            good: checkpoint that the run continues from; `None` for a new run.
            keep: number of rounds whose checkpoints stay on disk; 0 keeps all.
            fixed_state: values written unchanged into every checkpoint (seed, schedule, ...).
        """
        self._directory = directory
        self._candidate: Path | None = None
        """Folder of weights that do not (or not yet) belong to a checkpoint."""
        self._keep = keep
        self._fixed_state = fixed_state or {}
        self._good = good
        self.probes = directory / "probes.msgpack"
        """File of the sequences that verify every weight update of the run."""
        self._staged_s = 0.0
        self._current = (
            _known(good / "policy", checkpoint.load_state(good)["version"]) if good else _known(initial_policy, 0)
        )

    def current(self) -> tuple[Path, int]:
        """Hugging Face folder of the weights that the engines hold, and their version; waits until the weights are on disk.

        Raises:
            Exception: the error that the learner raised while it wrote the weights.
        """
        return self._current.result()

    def stage(self, learner: Learner, version: int, *, executor: Executor) -> None:
        """Start to write the learner's weights and optimizer beside the checkpoints, while the engines already use these
        weights.
        """
        self._current = executor.submit(self._stage, learner, version)

    def go_back(self, learner: Learner, version: int) -> None:
        """Load the last accepted weights and optimizer into the learner, to be published as `version`."""
        self.current()
        # The refused weights stay beside the new folder: a replaced worker may still be reading them.
        self._candidate = self._fresh(version)
        if self._good is None:
            learner.reset()
            learner.save(str(self._candidate))
        else:
            learner.load(str(self._good))
            _link_all(self._good, self._candidate)
        self._current = _known(self._candidate / "policy", version)

    def commit(self, report: RoundReport, *, gate: Gate, cursor: int, started: float) -> RoundReport:
        """Make the candidate the round's checkpoint. Returns the report with its last two times, `checkpoint` and `round`.

        The candidate's own folder stays until the next candidate: a replaced worker may still be reading it.

        Args:
            report: the round's report.
            gate: the gate, whose state is part of the checkpoint.
            cursor: position of the next round's first prompt in the source.
            started: when the round began, by `time.monotonic`.
        """
        _, version = self.current()
        before = time.monotonic()
        state = {
            **self._fixed_state,
            "round": report.round,
            "version": version,
            "cursor": cursor,
            "gate": gate.state(),
        }
        self._good = checkpoint.save(
            self._directory, report.round, lambda target: _link_all(self._candidate, target), state
        )
        self._current = _known(self._good / "policy", version)
        if self._keep:
            # One more checkpoint than asked for is kept: until this round's report is in the journal, a resumed run begins one
            # round earlier.
            checkpoint.prune(self._directory, self._keep + 1)
        now = time.monotonic()
        seconds = {**report.seconds, "checkpoint": self._staged_s + now - before, "round": now - started}
        return replace(report, seconds=seconds)

    def close(self) -> None:
        """Remove the folders that are not checkpoints."""
        self._clear()

    def _clear(self) -> None:
        for folder in self._directory.glob(f"{CANDIDATE}*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _stage(self, learner: Learner, version: int) -> tuple[Path, int]:
        started = time.monotonic()
        self._clear()
        self._candidate = self._fresh(version)
        learner.save(str(self._candidate))
        self._staged_s = time.monotonic() - started
        policy = self._candidate / "policy"
        if not policy.is_dir():
            raise CheckpointError(
                f"the learner has written weights to {policy}, and there is no such folder here: the run's folder must be on "
                "storage that every node sees (output.runs_dir)"
            )
        return policy, version

    def _fresh(self, version: int) -> Path:
        """An empty folder for the weights of a version."""
        folder = self._directory / f"{CANDIDATE}-{version}"
        folder.mkdir(parents=True)
        return folder


def _known(policy: Path, version: int) -> Future[tuple[Path, int]]:
    found: Future[tuple[Path, int]] = Future()
    found.set_result((policy, version))
    return found


def _link_all(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        if entry.name not in OF_A_CHECKPOINT:
            files.link(entry, target / entry.name)
