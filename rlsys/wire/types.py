"""How each type that a record may declare is written and read: the codecs behind `frames.py`.

One codec is made per type, from the record's type hints. Records and fields follow the hints in order without framing of their
own; only tuples, dicts and arrays carry a length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from rlsys.errors import CorruptFrame, FrameTooLarge, WrongType
from rlsys.records import Image
from rlsys.wire.stream import READ_ERRORS, UNICODE, Fault, Reader, Writer

_DTYPES = {
    np.dtype(name).newbyteorder("<").str: np.dtype(name)
    for name in (
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64"),
    )
}
_MAX_RANK = 8


class Codec(Protocol):
    """Writes and reads values of one type."""

    name: str
    """Name of the type in error messages."""

    def write(self, writer: Writer, value: Any) -> None: ...

    def read(self, reader: Reader) -> Any: ...


class ScalarCodec:
    """A `str`, `int`, `float` or `bool`, never one of them in place of another."""

    def __init__(self, kind: type, accepted: tuple[type, ...]) -> None:
        """
        Args:
            kind: the type.
            accepted: other types that are converted to `kind` when written.
        """
        self.kind, self.accepted = kind, accepted
        self.name = kind.__name__

    def write(self, writer: Writer, value: Any) -> None:
        try:
            writer.pack(value if type(value) is self.kind else self._convert(value))
        except OverflowError:
            raise Fault(WrongType, f"expected {self.name} of 64 bits, got {value}") from None

    def _convert(self, value: Any) -> Any:
        if not isinstance(value, self.accepted) or isinstance(value, bool):
            raise _wrong(self, value)
        return str.__str__(value) if self.kind is str else self.kind(value)

    def read(self, reader: Reader) -> Any:
        value = reader.unpack()
        if type(value) is not self.kind:
            raise _wrong(self, value)
        return value


class TextCodec(ScalarCodec):
    """A `str`, not longer than the limit."""

    def write(self, writer: Writer, value: Any) -> None:
        most = writer.limits.max_text_bytes
        if isinstance(value, str) and len(value) > most // 4 and len(value.encode(errors=UNICODE)) > most:
            raise Fault(FrameTooLarge, f"text of {len(value)} characters is above max_text_bytes {most}")
        super().write(writer, value)


class ArrayCodec:
    """Dtype, offset and shape of an array, whose bytes are in the array section. `None` allows any dtype or rank."""

    def __init__(self, dtype: np.dtype | None = None, rank: int | None = None) -> None:
        self.dtype, self.rank = dtype, rank
        self.name = f"{dtype} array" if dtype is not None else "array"
        self._usual = None if dtype is None else (dtype.str, rank)
        """Dtype and rank of the usual array, which is read without further checks."""

    def write(self, writer: Writer, value: Any) -> None:
        if not isinstance(value, np.ndarray):
            raise _wrong(self, value)
        code, shape = value.dtype.str, value.shape
        self._check(code, len(shape))
        writer.array_header(2 + len(shape))
        writer.pack(code)
        writer.pack(writer.add_array(value))
        for length in shape:
            writer.pack(length)

    def read(self, reader: Reader) -> np.ndarray:
        num_parts = reader.length(reader.array_header, self.name)
        if not 2 <= num_parts <= 2 + _MAX_RANK:
            raise Fault(WrongType, f"expected {self.name}, got a sequence of {num_parts}")
        unpack = reader.unpack
        code, offset, *shape = [unpack() for _ in range(num_parts)]
        dtype = self._check(code, num_parts - 2)
        if type(offset) is not int or offset < 0:
            raise Fault(CorruptFrame, f"array of offset and shape {[offset, *shape]}")
        span = dtype.itemsize
        for length in shape:
            if type(length) is not int or length < 0:
                raise Fault(CorruptFrame, f"array of offset and shape {[offset, *shape]}")
            span *= length or 1  # a dimension of 0 must not hide another one that is impossibly large
        size = 0 if 0 in shape else span
        given = len(reader.arrays)
        if offset + size > given or span > reader.limits.max_bytes:
            raise Fault(
                FrameTooLarge, f"array {tuple(shape)} of {dtype} at byte {offset} in a section of {given} bytes"
            )
        return np.ndarray(shape, dtype, reader.arrays, offset)

    def _check(self, code: Any, rank: int) -> np.dtype:
        if (code, rank) == self._usual:
            return self.dtype
        dtype = _DTYPES.get(code) if type(code) is str else None
        if dtype is None:
            raise Fault(WrongType, f"expected {self.name}, got an array of dtype {code!r}, which no frame may hold")
        if self.dtype is not None and dtype != self.dtype:
            raise Fault(WrongType, f"expected {self.name}, got {dtype} array")
        if rank > _MAX_RANK or (self.rank is not None and rank != self.rank):
            wanted = f"at most {_MAX_RANK}" if self.rank is None else self.rank
            raise Fault(WrongType, f"expected {self.name} of {wanted} dimensions, got {rank}")
        return dtype


class ImageCodec:
    """An `Image`, as its position in the frame's table."""

    name = "Image"

    def write(self, writer: Writer, value: Any) -> None:
        if type(value) is not Image:
            raise _wrong(self, value)
        writer.pack(writer.add_image(value))

    def read(self, reader: Reader) -> Image:
        position = reader.unpack()
        if type(position) is not int:
            raise _wrong(self, position)
        if not 0 <= position < len(reader.images):
            raise Fault(CorruptFrame, f"image {position} of a frame with {len(reader.images)}")
        return reader.images[position]


class OptionalCodec:
    """`X | None`: nil, or `True` and the value."""

    def __init__(self, item: Codec) -> None:
        self.item = item
        self.name = f"{item.name} or None"

    def write(self, writer: Writer, value: Any) -> None:
        if value is None:
            writer.pack(None)
        else:
            writer.pack(True)
            self.item.write(writer, value)

    def read(self, reader: Reader) -> Any:
        present = reader.unpack()
        if present is None:
            return None
        if present is not True:
            raise _wrong(self, present)
        return self.item.read(reader)


class TupleCodec:
    """`tuple[X, ...]`."""

    name = "tuple"

    def __init__(self, item: Codec) -> None:
        self.item = item

    def write(self, writer: Writer, value: Any) -> None:
        if not isinstance(value, tuple):
            raise _wrong(self, value)
        writer.limits.check_items(len(value))
        writer.array_header(len(value))
        position = 0
        try:
            for item in value:
                self.item.write(writer, item)
                position += 1
        except Fault as fault:
            raise fault.at(f"[{position}]") from None

    def read(self, reader: Reader) -> tuple:
        length = reader.length(reader.array_header, self.name)
        items: list[Any] = []
        try:
            for _ in range(length):
                items.append(self.item.read(reader))
        except READ_ERRORS as error:
            raise reader.fault(error, self.item.name).at(f"[{len(items)}]") from None
        return tuple(items)


class DictCodec:
    """`dict[str, X]`; the order of its keys is kept."""

    name = "dict"

    def __init__(self, item: Codec) -> None:
        self.item = item

    def write(self, writer: Writer, value: Any) -> None:
        if not isinstance(value, dict):
            raise _wrong(self, value)
        writer.limits.check_items(len(value))
        writer.map_header(len(value))
        for key, item in value.items():
            try:
                _TEXT.write(writer, key)
                self.item.write(writer, item)
            except Fault as fault:
                raise fault.at(f"[{key!r}]") from None

    def read(self, reader: Reader) -> dict:
        items: dict[str, Any] = {}
        for _ in range(reader.length(reader.map_header, self.name)):
            key = _TEXT.read(reader)
            if key in items:
                raise Fault(CorruptFrame, f"key {key!r} twice")
            try:
                items[key] = self.item.read(reader)
            except READ_ERRORS as error:
                raise reader.fault(error, self.item.name).at(f"[{key!r}]") from None
        return items


class RecordCodec:
    """A dataclass: its fields one after the other."""

    def __init__(self, kind: type) -> None:
        self.kind, self.name = kind, kind.__name__
        self.fields: list[tuple[str, Codec]] = []

    def write(self, writer: Writer, value: Any) -> None:
        if type(value) is not self.kind:
            raise _wrong(self, value)
        writer.depth += 1
        writer.limits.check_depth(writer.depth)
        name = ""
        try:
            for name, codec in self.fields:
                codec.write(writer, getattr(value, name))
        except Fault as fault:
            raise fault.at(f".{name}") from None
        writer.depth -= 1

    def read(self, reader: Reader) -> Any:
        reader.depth += 1
        reader.limits.check_depth(reader.depth)
        values: dict[str, Any] = {}
        try:
            for name, codec in self.fields:
                values[name] = codec.read(reader)
        except READ_ERRORS as error:
            raise reader.fault(error, codec.name).at(f".{name}") from None
        reader.depth -= 1
        return _make(self.kind, values)


_TEXT = TextCodec(str, (str,))
_IMAGE_TABLE = ArrayCodec(np.dtype(np.uint8), 3)
PLAIN: dict[Any, Codec] = {
    str: _TEXT,
    int: ScalarCodec(int, (np.integer,)),
    float: ScalarCodec(float, (int, float, np.floating, np.integer)),
    bool: ScalarCodec(bool, (np.bool_,)),
    np.ndarray: ArrayCodec(),
    Image: ImageCodec(),
}


def write_images(writer: Writer) -> None:
    """The frame's image table."""
    writer.limits.check_items(len(writer.images))
    writer.array_header(len(writer.images))
    for image in writer.images:
        _IMAGE_TABLE.write(writer, image.pixels)


def read_images(reader: Reader) -> None:
    """Fill `reader.images` from the frame's image table."""
    for position in range(reader.length(reader.array_header, "images")):
        try:
            reader.images.append(_make(Image, {"pixels": _IMAGE_TABLE.read(reader)}))
        except READ_ERRORS as error:
            raise reader.fault(error, _IMAGE_TABLE.name).at(f".<images>[{position}]") from None


def _make(kind: Callable[..., Any], values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValueError as error:  # the record's own checks refused its content
        raise Fault(WrongType, str(error)) from None


def _wrong(codec: Codec, value: Any) -> Fault:
    found = "None" if value is None else type(value).__name__
    return Fault(WrongType, f"expected {codec.name}, got {found}")
