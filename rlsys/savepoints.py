"""Where a run's weights are on disk: the checkpoint of every round, and the candidate that a gate may still refuse."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

from rlsys import checkpoint
from rlsys.contracts import Gate, Learner
from rlsys.records import RoundReport


class Savepoints:
    """Keeps the weights that the engines hold on disk at all times, so that a worker can be replaced at any time.

    savepoints.stage(learner, version)      # the new weights, not yet judged
    savepoints.go_back(learner, version)    # ... refused: the last good ones again, under a new version
    savepoints.commit(report, gate, ...)    # the round's checkpoint, atomic and hashed
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
            good: checkpoint that the run goes on from; `None` if it begins.
            keep: how many rounds' checkpoints stay on disk; 0 keeps all.
            fixed_state: written into every checkpoint as it is (seed, schedule, ...).
        """
        self._directory = directory
        self._candidate = directory / ".candidate"
        self._initial_policy = initial_policy
        self._keep = keep
        self._fixed_state = fixed_state or {}
        self._good = good
        self.policy: Path = good / "policy" if good else initial_policy
        """Hugging Face folder of the weights that the engines hold."""
        self.version: int = checkpoint.load_state(good)["version"] if good else 0
        """Their version."""
        self.probes = directory / "probes.msgpack"
        """File of the sequences that prove every weight update of the run."""
        self._staged_s = 0.0

    def stage(self, learner: Learner, version: int) -> None:
        """Write the learner's weights and optimizer beside the checkpoints."""
        started = time.monotonic()
        self._directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._candidate, ignore_errors=True)
        self._candidate.mkdir()
        learner.save(str(self._candidate))
        self.policy, self.version = self._candidate / "policy", version
        self._staged_s = time.monotonic() - started

    def go_back(self, learner: Learner, version: int) -> None:
        """Give the learner the last accepted weights and optimizer again, to be published as `version`."""
        shutil.rmtree(self._candidate)
        if self._good is None:
            learner.reset()
            self._candidate.mkdir()
            learner.save(str(self._candidate))
        else:
            learner.load(str(self._good))
            shutil.copytree(self._good, self._candidate, copy_function=os.link)
        self.policy, self.version = self._candidate / "policy", version

    def commit(self, report: RoundReport, *, gate: Gate, cursor: int, started: float) -> RoundReport:
        """Make the candidate the round's checkpoint; the report gets its last two times, `checkpoint` and `round`.

        Args:
            cursor: position of the next round's first prompt in the source.
            started: when the round began, by `time.monotonic`.
        """
        before = time.monotonic()

        def write(target: Path) -> None:
            for entry in self._candidate.iterdir():
                if entry.name not in ("manifest.json", "state.json"):
                    entry.rename(target / entry.name)

        state = {
            **self._fixed_state,
            "round": report.round,
            "version": self.version,
            "cursor": cursor,
            "gate": gate.state(),
        }
        self._good = checkpoint.save(self._directory, report.round, write, state)
        shutil.rmtree(self._candidate)
        self.policy = self._good / "policy"
        if self._keep:
            # One more than asked for: until this round's report is in the journal, a resumed run begins one round earlier.
            checkpoint.prune(self._directory, self._keep + 1)
        now = time.monotonic()
        seconds = {**report.seconds, "checkpoint": self._staged_s + now - before, "round": now - started}
        return replace(report, seconds=seconds)
