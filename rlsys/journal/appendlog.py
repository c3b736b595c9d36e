"""An append-only file of checksummed entries, on which the journal is built.

    entry    magic 4s, kind u32, payload bytes u64, xxh3 of the payload u64, xxh3 of the header so far u64, payload

An entry exists once its last byte is written. A file that ends inside an entry was torn by a kill, or is being written at this
moment; readers use the entries before the torn one. A complete but damaged entry is not a torn end, and raises an error.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from rlsys.common.checksum import checksum
from rlsys.errors import JournalError

_MAGIC = b"RLJ2"
_EARLIER_MAGIC = b"RLSJ"
"""Magic of logs whose checksums were computed in another way."""
_HEADER = struct.Struct("<4sIQQ")
_CHECK = struct.Struct("<Q")
_HEADER_BYTES = _HEADER.size + _CHECK.size
_CHUNK_BYTES = 1 << 20
_MAX_PARTS = 512
"""Buffers in one system call, below every platform's limit."""


class Entry(NamedTuple):
    """One entry of a log."""

    kind: int
    payload: bytes
    end: int
    """Offset of the first byte after the entry."""


class LogWriter:
    """Appends to a new log; only one thread may use it at a time.

    Args:
        path: file of the log; it must not exist yet.
        durable: every append waits until the disk has the entries. Otherwise only `sync` waits for the disk; an append then
            waits for the operating system, whose buffers survive a killed process but not a power cut.

    Raises:
        FileExistsError: `path` exists.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        self.path = path
        self.end = 0
        """Offset of the next entry."""
        self._durable = durable
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644)
        self._broken = self._closed = False

    def append(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """Append (kind, payload) entries, and return when they survive the death of this process.

        Raises:
            JournalError: the log is closed, or the entries could not be written completely; the log then ends where it ended
                before.
        """
        parts: list[bytes] = []
        for kind, payload in entries:
            parts += [_header(kind, payload), payload]
        if self._closed:
            raise JournalError(f"{self.path} is closed")
        if self._broken:
            raise JournalError(f"{self.path}: an earlier append failed halfway at byte {self.end}")
        try:
            self._write(parts)
            if self._durable:
                os.fdatasync(self._file)
        except OSError as error:
            self._broken = True
            os.ftruncate(self._file, self.end)
            self._broken = False
            raise JournalError(f"{self.path}: cannot append at byte {self.end}: {error}") from error
        self.end += sum(map(len, parts))

    def _write(self, parts: list[bytes]) -> None:
        waiting: list[bytes | memoryview] = list(parts)
        while waiting:
            num_written = os.writev(self._file, waiting[:_MAX_PARTS])
            while waiting and num_written >= len(waiting[0]):
                num_written -= len(waiting.pop(0))
            if num_written:
                waiting[0] = memoryview(waiting[0])[num_written:]

    def sync(self) -> None:
        """Wait until the disk has everything appended so far."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the log; it takes no more entries."""
        self._closed = True
        os.close(self._file)


def entry_bytes(payload: bytes) -> int:
    """Size in bytes of the entry that holds a payload."""
    return _HEADER_BYTES + len(payload)


def scan(path: Path) -> Iterator[tuple[int, Entry]]:
    """(offset, entry) of every complete entry of a log, checked, as far as the log is written at this moment.

    Raises:
        JournalError: an entry is damaged; the message has file and offset.
    """
    with path.open("rb") as file:
        offset = 0
        while True:
            entry = _read(file, offset)
            if entry is None:
                sound = _next_sound(file, offset + 1)
                if sound is None and _is_torn_end(file, offset):
                    return
                entry = _read(file, offset)  # a writer may have finished this entry, and further ones, in the meantime
                if entry is None:
                    file.seek(offset)
                    if file.read(len(_EARLIER_MAGIC)) == _EARLIER_MAGIC:
                        raise JournalError(f"{path}: written by an earlier version, which this one does not read")
                    after = "no sound entry follows" if sound is None else f"sound entries follow from byte {sound}"
                    raise JournalError(f"{path}: damaged entry at byte {offset}; {after}")
            yield offset, entry
            offset = entry.end


def read_at(file: BinaryIO, offset: int) -> Entry:
    """The entry at an offset where an entry is known to begin.

    Raises:
        JournalError: the entry is damaged.
    """
    entry = _read(file, offset)
    if entry is None:
        raise JournalError(f"{file.name}: damaged entry at byte {offset}")
    return entry


def _header(kind: int, payload: bytes) -> bytes:
    header = _HEADER.pack(_MAGIC, kind, len(payload), checksum(payload))
    return header + _CHECK.pack(checksum(header))


def _read(file: BinaryIO, offset: int) -> Entry | None:
    """The entry at `offset`, or `None` if there is no complete and valid entry."""
    header = _sound_header(file, offset)
    if header is None:
        return None
    kind, num_bytes, expected = header
    end = offset + _HEADER_BYTES + num_bytes
    if end > os.fstat(file.fileno()).st_size:
        return None
    payload = file.read(num_bytes)
    if len(payload) < num_bytes or checksum(payload) != expected:
        return None
    return Entry(kind, payload, end)


def _sound_header(file: BinaryIO, offset: int) -> tuple[int, int, int] | None:
    """Kind, payload bytes and payload checksum of a valid header; the file's position is then behind the header."""
    file.seek(offset)
    header = file.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        return None
    magic, kind, num_bytes, expected = _HEADER.unpack_from(header)
    if magic != _MAGIC or _CHECK.unpack_from(header, _HEADER.size)[0] != checksum(header[: _HEADER.size]):
        return None
    return kind, num_bytes, expected


def _is_torn_end(file: BinaryIO, offset: int) -> bool:
    """Whether the bytes from `offset` to the file's end are the beginning of an entry, or zeros that a power cut left."""
    num_left = os.fstat(file.fileno()).st_size - offset
    header = _sound_header(file, offset)
    if header is not None:
        return _HEADER_BYTES + header[1] > num_left
    file.seek(offset)
    return num_left < _HEADER_BYTES or not any(file.read(_CHUNK_BYTES))


def _next_sound(file: BinaryIO, start: int) -> int | None:
    """Offset of the first valid entry from `start` on."""
    overlap = len(_MAGIC) - 1
    while True:
        file.seek(start)
        chunk = file.read(_CHUNK_BYTES)
        found = chunk.find(_MAGIC)
        while found >= 0:
            if _read(file, start + found) is not None:
                return start + found
            found = chunk.find(_MAGIC, found + 1)
        if len(chunk) < _CHUNK_BYTES:
            return None
        start += _CHUNK_BYTES - overlap
