"""The journal of a run on disk: every group, critique, score, pair and report.

Every attempt at a round has one file, `round-0002.attempt-0001.log`. A round that is begun again gets a new file, so that no
acknowledged record is ever destroyed; readers use the newest attempt. Several rounds may be open at once, and several stages
append to one round from their threads.

    journal = Journal("runs/a/journal")
    journal.begin(0)
    journal.append(0, group)            # once it returns, the group survives a kill of this process
    journal.seal(0, "groups")           # once it returns, everything so far survives a power cut
    for group in journal.read(0, RolloutGroup): ...       # here or in another process, also during the run
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from rlsys.errors import JournalError
from rlsys.journal.appendlog import LogWriter, scan
from rlsys.journal.entries import PartReader, PartWriter, Seal, entry_kind

T = TypeVar("T")

_NAME = re.compile(r"round-(\d+)\.attempt-(\d+)\.log")


class Journal:
    """A folder of logs. Threads may share it; only one process may write to it.

    Args:
        root: the folder.
        create: make the folder if it is missing; a reader passes `False`.
        durable: every append waits for the disk, so that single records survive a power cut too.

    Raises:
        JournalError: `root` is missing and `create` is `False`.
    """

    def __init__(self, root: str | Path, *, create: bool = True, durable: bool = False) -> None:
        self.root = Path(root)
        self._durable = durable
        self._lock = threading.Lock()
        self._open: dict[int, _OpenRound] = {}
        if create:
            self.root.mkdir(parents=True, exist_ok=True)
        elif not self.root.is_dir():
            raise JournalError(f"{self.root} is no journal")

    def begin(self, round: int) -> int:
        """Open a new attempt at a round. The records of earlier attempts stay, and are no longer read by default.

        Returns:
            The number of the attempt, from 1.

        Raises:
            JournalError: another process has just begun the same attempt.
        """
        if round < 0:
            raise ValueError(f"round must be at least 0, got {round}")
        with self._lock:
            self._close(round)
            attempt = 1 + max(self.attempts(round), default=0)
            path = self._path(round, attempt)
            try:
                self._open[round] = _OpenRound(LogWriter(path, durable=self._durable))
            except FileExistsError as error:
                raise JournalError(f"{path} has just been begun by another process") from error
            self._sync_folder()
        return attempt

    def append(self, round: int, *records: Any) -> None:
        """Append records to the open attempt in one write. Once this returns, they survive the death of this process.

        Args:
            round: number of the round.
            records: rollout groups, scored groups, examples of any registered class, or reports.

        Raises:
            JournalError: the round is not open, or the file does not take the records.
            WrongType: a field of a record is not of its type, or the journal does not store such records; none was written.
        """
        self._opened(round).append(*records)

    def seal(self, round: int, what: str) -> None:
        """Mark that all records of `what` (any name: `groups`, `pairs`, ...) have been appended, and wait until the disk has
        them.

        Raises:
            JournalError: as `append`.
        """
        self._opened(round).append(Seal(what=what), sync=True)

    def finish(self, round: int) -> None:
        """Close the open attempt, if there is one; it takes no more records."""
        with self._lock:
            self._close(round)

    def close(self) -> None:
        """Close all open attempts."""
        with self._lock:
            for round in list(self._open):
                self._close(round)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def rounds(self) -> list[int]:
        """Rounds with at least one attempt, in order."""
        return sorted({round for round, _ in self._names()})

    def attempts(self, round: int) -> list[int]:
        """Attempts at a round, in order; empty if there is none."""
        return sorted(attempt for found, attempt in self._names() if found == round)

    def read(self, round: int, kind: type[T], *, attempt: int | None = None) -> Iterator[T]:
        """Records of one class in the order in which they were appended, as far as they are written at this moment.

        Args:
            round: number of the round.
            kind: the record class.
            attempt: number of the attempt; `None` is the newest.

        Raises:
            JournalError: there is no such attempt, or an entry is damaged.
            WrongType: the journal does not store records of this class.
        """
        entry_kind(kind)
        return self._read(round, kind, attempt)

    def is_sealed(self, round: int, what: str, *, attempt: int | None = None) -> bool:
        """Whether the attempt (`None`: the newest) was sealed for `what`; also `False` if there is no attempt."""
        return what in self.seals(round, attempt=attempt)

    def seals(self, round: int, *, attempt: int | None = None) -> list[str]:
        """The names that the attempt (`None`: the newest) was sealed for; also empty if there is no attempt."""
        if not self.attempts(round):
            return []
        return [seal.what for seal in self._read(round, Seal, attempt)]

    def _read(self, round: int, kind: type, attempt: int | None) -> Iterator:
        attempts = self.attempts(round)
        if not attempts or (attempt is not None and attempt not in attempts):
            wanted = "attempt" if attempt is None else f"attempt {attempt}"
            raise JournalError(f"{self.root} has no {wanted} at round {round}")
        return _records(self._path(round, attempts[-1] if attempt is None else attempt), kind)

    def _opened(self, round: int) -> _OpenRound:
        with self._lock:
            if round not in self._open:
                raise JournalError(f"{self.root}: round {round} is not open; begin it first")
            return self._open[round]

    def _close(self, round: int) -> None:
        if round in self._open:
            self._open.pop(round).close()

    def _path(self, round: int, attempt: int) -> Path:
        return self.root / f"round-{round:04d}.attempt-{attempt:04d}.log"

    def _names(self) -> list[tuple[int, int]]:
        matches = (_NAME.fullmatch(path.name) for path in self.root.iterdir())
        return [(int(match[1]), int(match[2])) for match in matches if match]

    def _sync_folder(self) -> None:
        folder = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _OpenRound:
    """An attempt to which any thread may append records."""

    def __init__(self, log: LogWriter) -> None:
        self._log, self._parts = log, PartWriter(log)
        self._lock = threading.Lock()

    def append(self, *records: Any, sync: bool = False) -> None:
        with self._lock:
            self._parts.append(*records)
            if sync:
                self._log.sync()

    def close(self) -> None:
        with self._lock:
            self._log.sync()
            self._log.close()


def _records(path: Path, kind: type) -> Iterator:
    reader = PartReader(path)
    number = entry_kind(kind)
    try:
        for offset, entry in scan(path):
            if entry.kind == number:
                yield reader.record(kind, offset, entry)
    finally:
        reader.close()
