"""How the journal stores records: each record is split into parts, and each part is stored once.

A part (image, prompt, prompt tokens, response, group) is an entry of its own. Every record that contains the part refers to it
by the entry's offset, so the examples of a prompt repeat neither its image nor its responses. The stored form of a record
follows from the record's fields, so this module does not change when a record gets a field.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np

from rlsys.common.checksum import content_key
from rlsys.common.lru import ByteCache
from rlsys.errors import JournalError, WireError, WrongType
from rlsys.journal.appendlog import Entry, LogWriter, entry_bytes, read_at
from rlsys.records import (
    EXAMPLES,
    Image,
    Prompt,
    Response,
    RolloutGroup,
    RoundReport,
    ScoredGroup,
    TokenIds,
)
from rlsys.wire import decode, encode


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """The tokens of a prompt, shared by its group and its pairs."""

    token_ids: TokenIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Seal:
    """Entry that marks that all records of a kind have been appended."""

    what: str


PARTS: dict[type, int] = {Image: 1, Prompt: 2, PromptTokens: 3, Response: 4, RolloutGroup: 5}
"""Entry kinds of parts, which are stored because another entry refers to them."""
LISTED: dict[type, int] = {RolloutGroup: 16, ScoredGroup: 17, RoundReport: 19, Seal: 20}
"""Entry kinds of records, other than examples, that are appended and read back."""
_FIRST_EXAMPLE = 1 << 31
"""First of the entry kinds of examples."""

_NUM_KNOWN = 1 << 14
"""Number of parts whose offset a writer remembers, so that its memory does not grow with the round. A part that recurs after it
was forgotten is written again.
"""
_CACHE_BYTES = 64 << 20
"""Bytes of parts, as stored, that a reader keeps in memory."""


@cache
def entry_kind(record: type) -> int:
    """The entry kind of a record class that is appended and read back. The kind of an example follows from the name of its
    class, so that a new class needs no number.

    Raises:
        WrongType: the journal does not store records of this class.
    """
    if record in LISTED:
        return LISTED[record]
    if EXAMPLES.get(record.__name__) is not record:
        raise WrongType(f"a journal keeps no {record.__name__}, but {_names([*LISTED, *EXAMPLES.values()])}")
    return _FIRST_EXAMPLE | int.from_bytes(content_key(record.__name__.encode())[:4], "little")


class _Form(NamedTuple):
    """The stored form of a record class."""

    kind: type
    stored: type
    names: tuple[str, ...]
    """Names of all fields."""
    single: dict[str, type]
    """Fields that hold one part."""
    many: dict[str, type]
    """Fields that hold a tuple of parts."""


@cache
def _form(kind: type) -> _Form:
    single: dict[str, type] = {}
    many: dict[str, type] = {}
    declared: list[tuple[str, Any]] = []
    for name, hint in get_type_hints(kind).items():
        if hint in PARTS or name == "prompt_token_ids":
            single[name] = hint if hint in PARTS else PromptTokens
            declared.append((name, int))
        elif get_origin(hint) is tuple and get_args(hint)[0] in PARTS:
            many[name] = get_args(hint)[0]
            declared.append((name, tuple[int, ...]))
        else:
            declared.append((name, hint))
    stored = make_dataclass(f"Stored{kind.__name__}", declared, kw_only=True) if single or many else kind
    return _Form(kind, stored, tuple(name for name, _ in declared), single, many)


def _take_apart(record: Any, put: Callable[[type, Any], int]) -> Any:
    form = _form(type(record))
    if form.stored is form.kind:
        return record
    values = {name: getattr(record, name) for name in form.names}
    for name, kind in form.single.items():
        values[name] = put(kind, values[name])
    for name, kind in form.many.items():
        values[name] = tuple(put(kind, part) for part in values[name])
    return form.stored(**values)


def _put_together(stored: Any, kind: type, get: Callable[[type, int], Any]) -> Any:
    form = _form(kind)
    if form.stored is form.kind:
        return stored
    values = dict(vars(stored))
    for name, part in form.single.items():
        values[name] = get(part, values[name])
        if part is PromptTokens:
            values[name] = values[name].token_ids
    for name, part in form.many.items():
        values[name] = tuple(get(part, offset) for offset in values[name])
    return form.kind(**values)


class PartWriter:
    """Appends records to one log, each after the new parts that it refers to. Only one thread may use it at a time."""

    def __init__(self, log: LogWriter) -> None:
        self.log = log
        self._offsets: OrderedDict[bytes, int] = OrderedDict()
        self._seen = _Seen()
        self._entries: list[tuple[int, bytes]] = []
        self._added: dict[bytes, int] = {}
        self._end = 0

    def append(self, *records: Any) -> None:
        """Append records in one write. Returns when the records survive the death of this process.

        Raises:
            JournalError: the log does not take the records.
            WireError: a field is not of its type, or the journal does not store such records; nothing was written.
        """
        self._entries, self._added, self._end = [], {}, self.log.end
        try:
            for record in records:
                self._append(record)
            self.log.append(self._entries)
        except BaseException:
            self._seen.clear()  # it may name offsets that were never written
            raise
        self._offsets.update(self._added)
        while len(self._offsets) > _NUM_KNOWN:
            self._offsets.popitem(last=False)

    def _append(self, record: Any) -> None:
        kind = type(record)
        number = entry_kind(kind)
        frame = encode(_take_apart(record, self._put))
        if kind in PARTS:
            self._seen.add(record, self._add(number, frame, content_key(frame)))
        else:
            self._add(number, frame, None)

    def _put(self, kind: type, value: Any) -> int:
        """Offset of the part that a field of type `kind` holds; a new part is added."""
        wanted = np.ndarray if kind is PromptTokens else kind
        if not isinstance(value, wanted):
            raise WrongType(f"expected {wanted.__name__}, got {type(value).__name__}")
        offset = self._seen.offset(value)
        if offset is None:
            part = PromptTokens(token_ids=value) if kind is PromptTokens else value
            frame = None if kind is Image else encode(_take_apart(part, self._put))
            key = bytes.fromhex(part.digest) if frame is None else content_key(frame)
            offset = self._offsets.get(key, self._added.get(key))
            if offset is None:
                offset = self._add(PARTS[kind], encode(part) if frame is None else frame, key)
            self._seen.add(value, offset)
        return offset

    def _add(self, number: int, frame: bytes, key: bytes | None) -> int:
        """Add an entry and return its offset, which is remembered under `key` if another entry may refer to it."""
        offset = self._end
        self._entries.append((number, frame))
        if key is not None:
            self._added[key] = offset
        self._end += entry_bytes(frame)
        return offset


class _Seen:
    """Offsets of parts by object identity, for as long as other code holds the objects. The parts that a group shares with its
    scores and pairs are encoded only once, and the writer keeps no image alive.
    """

    def __init__(self) -> None:
        self._found: dict[int, tuple[weakref.ref[Any], int]] = {}

    def offset(self, part: Any) -> int | None:
        known = self._found.get(id(part))
        return None if known is None else known[1]

    def add(self, part: Any, offset: int) -> None:
        found, key = self._found, id(part)
        # The callback runs before another object can get this one's id.
        found[key] = weakref.ref(part, lambda _: found.pop(key, None)), offset

    def clear(self) -> None:
        self._found.clear()


class PartReader:
    """Rebuilds the records of one log; keeps parts in memory up to a bound."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._cache: ByteCache[int, Any] = ByteCache(_CACHE_BYTES)

    def record(self, kind: type, offset: int, entry: Entry) -> Any:
        """The record or part whose entry is at `offset`.

        Raises:
            JournalError: the entry cannot be decoded, or a part that it refers to is missing; the message has file and offset.
        """
        try:
            stored = decode(entry.payload, _form(kind).stored)
        except WireError as error:
            raise JournalError(f"{self._file.name}: entry at byte {offset}: {error}") from error
        return _put_together(stored, kind, self._get)

    def close(self) -> None:
        self._file.close()

    def _get(self, kind: type, offset: int) -> Any:
        kept = self._cache.get(offset)
        if kept is None:
            entry = read_at(self._file, offset)
            if entry.kind not in (PARTS[kind], LISTED.get(kind)):
                raise JournalError(f"{self._file.name}: entry at byte {offset} is no {kind.__name__}")
            kept = self.record(kind, offset, entry)
            self._cache.put(offset, kept, num_bytes=len(entry.payload))
        return kept


def _names(kinds: Iterable[type]) -> str:
    return ", ".join(kind.__name__ for kind in kinds)
