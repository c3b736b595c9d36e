"""How records lie in a journal: taken apart, each part once.

A part (picture, prompt, prompt tokens, answer, group) is an entry of its own, which everything that holds it refers to
by the entry's offset. So the pairs of a prompt repeat neither its picture nor its answers. The stored form of a record
follows from the record's own fields: nothing here changes when a record gets a field.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from rlsys.appendlog import Entry, LogWriter, entry_bytes, read_at
from rlsys.checksum import content_key
from rlsys.errors import JournalError, WireError, WrongType
from rlsys.lru import ByteCache
from rlsys.records import (
    Image,
    PreferencePair,
    Prompt,
    Rollout,
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
    """Says that all records of a kind are there."""

    what: str


PARTS: dict[type, int] = {Image: 1, Prompt: 2, PromptTokens: 3, Rollout: 4, RolloutGroup: 5}
"""Entry kinds of what is there because something refers to it."""
LISTED: dict[type, int] = {RolloutGroup: 16, ScoredGroup: 17, PreferencePair: 18, RoundReport: 19, Seal: 20}
"""Entry kinds of what was appended and is read back."""

_NUM_RECENT = 64
"""Parts that a writer knows again by identity: a few groups' worth, so that pairs cost no encoding of their answers."""
_NUM_KNOWN = 1 << 14
"""Parts whose place a writer remembers, so that its memory does not grow with the round; one that comes again later
than that is written again."""
_CACHE_BYTES = 64 << 20
"""Bytes of parts that a reader keeps, as stored."""


class _Form(NamedTuple):
    """What a record class is stored as."""

    kind: type
    stored: type
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
    return _Form(kind, stored, single, many)


def _take_apart(record: Any, put: Callable[[Any], int]) -> Any:
    form = _form(type(record))
    if form.stored is form.kind:
        return record
    values = {each.name: getattr(record, each.name) for each in fields(record)}
    for name, kind in form.single.items():
        values[name] = put(PromptTokens(token_ids=values[name]) if kind is PromptTokens else values[name])
    for name in form.many:
        values[name] = tuple(put(part) for part in values[name])
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
    """Appends records to one log, their new parts before them. One thread at a time."""

    def __init__(self, log: LogWriter) -> None:
        self.log = log
        self._offsets: OrderedDict[bytes, int] = OrderedDict()
        self._recent: OrderedDict[int, tuple[object, int]] = OrderedDict()
        self._entries: list[tuple[int, bytes]] = []
        self._added: dict[bytes, int] = {}
        self._end = 0

    def append(self, record: Any) -> None:
        """Returns when the record is safe from the death of this process.

        Raises:
            JournalError: the log does not take it.
            WireError: a field is not of its type, or the journal keeps no such records; nothing was written.
        """
        if type(record) not in LISTED:
            raise WrongType(f"a journal keeps {_names(LISTED)}, got {type(record).__name__}")
        self._entries, self._added, self._end = [], {}, self.log.end
        try:
            frame = encode(_take_apart(record, self._put))
            self._add(LISTED[type(record)], frame, content_key(frame) if type(record) in PARTS else None)
            self.log.append(self._entries)
        except BaseException:
            self._recent.clear()  # may name offsets that were never written
            raise
        self._offsets.update(self._added)
        while len(self._offsets) > _NUM_KNOWN:
            self._offsets.popitem(last=False)

    def _put(self, part: Any) -> int:
        known = self._recent.get(id(part))
        if known is not None:
            return known[1]
        if type(part) is Image:
            frame, key = None, bytes.fromhex(part.digest)
        else:
            frame = encode(_take_apart(part, self._put))
            key = content_key(frame)
        offset = self._offsets.get(key, self._added.get(key))
        if offset is None:
            offset = self._add(PARTS[type(part)], frame if frame is not None else encode(part), key)
        self._recent[id(part)] = part, offset
        if len(self._recent) > _NUM_RECENT:
            self._recent.popitem(last=False)
        return offset

    def _add(self, number: int, frame: bytes, key: bytes | None) -> int:
        """The entry's offset; it is remembered under `key` if something may refer to it."""
        offset = self._end
        self._entries.append((number, frame))
        if key is not None:
            self._added[key] = offset
        self._end += entry_bytes(frame)
        return offset


class PartReader:
    """Puts records of one log together again; keeps parts in memory up to a bound."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._cache: ByteCache[int, Any] = ByteCache(_CACHE_BYTES)

    def record(self, kind: type, offset: int, entry: Entry) -> Any:
        """The record or part of an entry that stands at `offset`.

        Raises:
            JournalError: it cannot be decoded, or what it refers to is not there; with file and offset.
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
