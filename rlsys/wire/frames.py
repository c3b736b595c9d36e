"""Records as bytes: the form in which they travel between processes and are stored in the journal.

A frame is a header, a msgpack body and the raw bytes of the arrays:

    header   magic 4s, schema u16, form u16, body bytes u64, array bytes u64, xxh3 of all that follows u64,
             xxh3 of the header so far u64
    body     layout (record classes with their field names), image table, number of records, records
    arrays   each at a multiple of 8 bytes; images are stored here once per content

Nothing is executed or unpickled. Both ends check that every value has the type that its record declares. Decoding a frame
either returns exactly the encoded values, bit for bit, or raises a `WireError` that says where the fault is.

    frame = encode(group)
    assert decode(frame, RolloutGroup) == group
"""

from __future__ import annotations

import struct
import threading
import types
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from rlsys.common.checksum import checksum
from rlsys.errors import CorruptFrame, FrameTooLarge, SchemaMismatch, TruncatedFrame, WrongType
from rlsys.wire.stream import ALIGNMENT, READ_ERRORS, Fault, Limits, Reader, Writer
from rlsys.wire.types import (
    PLAIN,
    ArrayCodec,
    Codec,
    DictCodec,
    OptionalCodec,
    RecordCodec,
    TupleCodec,
    read_images,
    write_images,
)

__all__ = ["SCHEMA", "Limits", "decode", "decode_many", "encode", "encode_many"]

SCHEMA = 3
"""Version of the format. It is raised whenever a frame of an earlier version could be misread."""

_MAGIC = b"RLSW"
_HEADER = struct.Struct("<4sHHQQQ")
_CHECK = struct.Struct("<Q")
_HEADER_BYTES = _HEADER.size + _CHECK.size
_ONE, _MANY = 1, 2
_DEFAULT = Limits()
_RECORDS: dict[type, RecordCodec] = {}
_RECORDS_LOCK = threading.RLock()

T = TypeVar("T")


def encode(record: object, *, limits: Limits = _DEFAULT) -> bytes:
    """One record as a frame.

    Integers in `float` fields and NumPy scalars are converted to plain Python numbers; every other value must have the declared
    type.

    Raises:
        WrongType: a field holds a value of another type; the message has its path.
        FrameTooLarge: the frame, a text, a tuple or the nesting is above `limits`.
    """
    return _encode([record], type(record), _ONE, limits)


def encode_many(records: Sequence[object], *, limits: Limits = _DEFAULT) -> bytes:
    """Records of one class as one frame, in which an image that several records share is stored once. Raises as `encode`.

    Raises:
        ValueError: `records` is empty, so that their class is not known.
    """
    if not records:
        raise ValueError("encode_many needs at least one record")
    return _encode(records, type(records[0]), _MANY, limits)


def decode(frame: bytes | bytearray | memoryview, expected: type[T], *, limits: Limits = _DEFAULT) -> T:
    """The record in a frame of `encode`.

    Its arrays are read-only views on `frame`, and keep the whole frame in memory.

    Raises:
        TruncatedFrame: the frame ends before its declared length.
        CorruptFrame: the bytes are not a frame, a checksum does not match, or the content contradicts itself.
        SchemaMismatch: the frame was written by another `SCHEMA`.
        FrameTooLarge: a part of the frame is above `limits`, or claims more bytes than there are.
        WrongType: the frame holds another record, other fields, or a value of another type than declared.
    """
    return _decode(frame, expected, _ONE, limits)[0]


def decode_many(frame: bytes | bytearray | memoryview, expected: type[T], *, limits: Limits = _DEFAULT) -> list[T]:
    """The records in a frame of `encode_many`; see `decode`."""
    return _decode(frame, expected, _MANY, limits)


def _encode(records: Sequence[object], kind: type, form: int, limits: Limits) -> bytes:
    (layout, codec), writer = _form(kind), Writer(limits)
    position = 0
    try:
        for record in records:
            codec.write(writer, record)
            position += 1
        content = writer.take()
        writer.pack(layout)
        write_images(writer)
        writer.pack(len(records))
    except Fault as fault:
        raise fault.raised(_root(kind, form, position)) from None
    head = writer.take()
    num_body = len(head) + len(content)
    padding = bytes(-(_HEADER_BYTES + num_body) % ALIGNMENT)
    parts = [head, content, padding, *writer.arrays]
    num_bytes = _HEADER_BYTES + num_body + len(padding) + writer.num_array_bytes
    if num_bytes > limits.max_bytes:
        raise FrameTooLarge(f"{kind.__name__}: frame of {num_bytes} bytes is above max_bytes {limits.max_bytes}")
    header = _HEADER.pack(_MAGIC, SCHEMA, form, num_body, writer.num_array_bytes, checksum(*parts))
    return b"".join([header, _CHECK.pack(checksum(header)), *parts])


def _decode(frame: bytes | bytearray | memoryview, kind: type[T], form: int, limits: Limits) -> list[T]:
    reader = _open(memoryview(frame).toreadonly().cast("B"), form, limits)
    (layout, codec), place = _form(kind), kind.__name__
    records: list[T] = []
    try:
        _check_layout(reader.unpack(), layout)
        read_images(reader)
        count = reader.unpack()
        if type(count) is not int or count < 1 or (form == _ONE and count != 1):
            raise Fault(CorruptFrame, f"frame of {count!r} records")
        limits.check_items(count)
        for _ in range(count):
            place = _root(kind, form, len(records))
            records.append(codec.read(reader))
    except READ_ERRORS as error:
        raise reader.fault(error, "the layout of a record").raised(place) from None
    if reader.num_left:
        raise CorruptFrame(f"{kind.__name__}: {reader.num_left} bytes of msgpack after the last record")
    return records


def _open(view: memoryview, form: int, limits: Limits) -> Reader:
    """Check everything about a frame except its content."""
    start = bytes(view[: len(_MAGIC)])
    if start != _MAGIC[: len(start)]:
        raise CorruptFrame(f"no frame: starts with {start!r} instead of {_MAGIC!r}")
    if len(view) < _HEADER_BYTES:
        raise TruncatedFrame(f"frame ends at byte {len(view)}, inside its header of {_HEADER_BYTES} bytes")
    _, schema, found_form, num_body, num_arrays, expected = _HEADER.unpack_from(view)
    if schema != SCHEMA:
        raise SchemaMismatch(f"frame of schema {schema}, this program reads schema {SCHEMA}")
    if _CHECK.unpack_from(view, _HEADER.size)[0] != checksum(view[: _HEADER.size]):
        raise CorruptFrame("checksum of the frame's header does not match")
    arrays_at = _HEADER_BYTES + num_body + -(_HEADER_BYTES + num_body) % ALIGNMENT
    num_bytes = arrays_at + num_arrays
    if num_bytes > limits.max_bytes:
        raise FrameTooLarge(f"frame of {num_bytes} bytes is above max_bytes {limits.max_bytes}")
    if len(view) < num_bytes:
        raise TruncatedFrame(f"frame ends at byte {len(view)} of {num_bytes}")
    if len(view) > num_bytes:
        raise CorruptFrame(f"{len(view) - num_bytes} bytes after the frame's end at byte {num_bytes}")
    if checksum(view[_HEADER_BYTES:]) != expected:
        raise CorruptFrame(f"checksum of bytes {_HEADER_BYTES} to {num_bytes} does not match")
    if found_form != form:
        words = {_ONE: "one record (decode)", _MANY: "a list of records (decode_many)"}
        raise WrongType(f"expected {words[form]}, the frame holds {words.get(found_form, f'form {found_form}')}")
    return Reader(view[_HEADER_BYTES : _HEADER_BYTES + num_body], view[arrays_at:], limits)


def _root(kind: type, form: int, position: int) -> str:
    return kind.__name__ if form == _ONE else f"{kind.__name__}[{position}]"


@cache
def _form(kind: type) -> tuple[str, Codec]:
    """Layout and codec of a frame's records. They are cached by this function and not where they are made, because a codec is
    incomplete until the codec of the outermost record is made.
    """
    return _layout(kind), _codec(kind)


def _layout(kind: type) -> str:
    """The record classes in a frame of `kind`, with their fields: `Turn(role,text)`; `kind` itself comes first."""
    found: dict[type, str] = {}
    waiting: list[Any] = [_record_codec(kind)]
    while waiting:
        codec = waiting.pop(0)
        if isinstance(codec, RecordCodec) and codec.kind not in found:
            found[codec.kind] = f"{codec.name}({','.join(name for name, _ in codec.fields)})"
            waiting += [inner for _, inner in codec.fields]
        elif isinstance(codec, (OptionalCodec, TupleCodec, DictCodec)):
            waiting.append(codec.item)
    return " ".join(found.values())


def _check_layout(found: Any, expected: str) -> None:
    """Raise a `Fault` that names the first difference between the records of a frame and those of this program."""
    if found == expected:
        return
    if type(found) is not str:
        raise Fault(WrongType, f"expected the layout of a record, got {type(found).__name__}")
    ours, theirs = (dict(_split(part) for part in text.split(" ")) for text in (expected, found))
    if next(iter(ours)) != next(iter(theirs)):
        raise Fault(WrongType, f"the frame holds {next(iter(theirs))!r}")
    for name, wanted in ours.items():
        given = theirs.get(name, [])
        missing = [field for field in wanted if field not in given]
        unknown = [field for field in given if field not in wanted]
        if missing or unknown:
            raise Fault(WrongType, f"fields of {name}: missing {missing}, unknown {unknown}")
    raise Fault(WrongType, f"the frame's records are laid out as {found!r}, here as {expected!r}")


def _split(part: str) -> tuple[str, list[str]]:
    name, _, names = part.partition("(")
    return name, names.rstrip(")").split(",")


def _record_codec(kind: type) -> RecordCodec:
    """The codec of a dataclass, the same object for every call. A record may contain records of its own class.

    Raises:
        WrongType: `kind` is not a dataclass, or a field declares a type that no frame can hold.
    """
    with _RECORDS_LOCK:
        if kind in _RECORDS:
            return _RECORDS[kind]
        if not is_dataclass(kind):
            raise WrongType(f"{kind!r} is no record")
        codec = _RECORDS[kind] = RecordCodec(kind)
        hints = get_type_hints(kind)
        try:
            codec.fields = [(each.name, _codec(hints[each.name])) for each in fields(kind)]
        except WrongType as error:
            del _RECORDS[kind]
            raise WrongType(f"{kind.__name__}: {error}") from None
        return codec


def _codec(hint: Any) -> Codec:
    if hint in PLAIN:
        return PLAIN[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is np.ndarray:
        shape, dtype = arguments
        ranks = get_args(shape)
        rank = None if not ranks or Ellipsis in ranks else len(ranks)
        return ArrayCodec(np.dtype(get_args(dtype)[0]), rank)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        return TupleCodec(_codec(arguments[0]))
    if origin is dict and arguments[0] is str:
        return DictCodec(_codec(arguments[1]))
    if origin in (Union, types.UnionType) and len(arguments) == 2 and type(None) in arguments:
        return OptionalCodec(_codec(next(argument for argument in arguments if argument is not type(None))))
    if is_dataclass(hint):
        return _record_codec(hint)
    raise WrongType(f"no frame can hold a field of type {hint}")
