"""Writing and reading of a frame's content: a `Writer` collects it, a `Reader` returns it piece by piece.

The reader accepts no container that the caller did not ask for, and allocates no memory for bytes that are not there: msgpack's
own nested decoding is not used, and arrays are views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import msgpack
import numpy as np

from rlsys.errors import CorruptFrame, FrameTooLarge, WireError, WrongType
from rlsys.records import Image

ALIGNMENT = 8
"""Arrays start at multiples of this many bytes, the largest item size allowed."""
UNICODE = "surrogatepass"
"""Error handler for encoding text: lone surrogates are part of a valid `str`, and are restored unchanged."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on the content of a frame; above a limit, both ends raise `FrameTooLarge`.

    Raises:
        ValueError: a limit is below 1.
    """

    max_bytes: int = 1 << 30
    """Bytes of a whole frame."""
    max_depth: int = 32
    """Depth of records within records."""
    max_items: int = 1 << 20
    """Items of one tuple, one dict, or the image table."""
    max_text_bytes: int = 1 << 24
    """Bytes of one text, as UTF-8."""

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if value < 1:
                raise ValueError(f"Limits.{limit.name} must be at least 1, got {value}")

    def check_items(self, length: int) -> None:
        if length > self.max_items:
            raise Fault(FrameTooLarge, f"{length} items are above max_items {self.max_items}")

    def check_depth(self, depth: int) -> None:
        if depth > self.max_depth:
            raise Fault(FrameTooLarge, f"records nested deeper than max_depth {self.max_depth}")


class Fault(Exception):
    """A fault in a value; each level that the exception passes adds its step to the path."""

    def __init__(self, error: type[WireError], message: str) -> None:
        super().__init__(message)
        self.error = error
        self.path = ""

    def at(self, step: str) -> Fault:
        self.path = step + self.path
        return self

    def raised(self, root: str) -> WireError:
        """The public error, whose path starts at `root`."""
        return self.error(f"{root}{self.path}: {self}")


class Writer:
    """Collects msgpack, arrays and images of one frame."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._packer = msgpack.Packer(autoreset=False, unicode_errors=UNICODE, buf_size=4096)
        self.pack: Callable[[Any], Any] = self._packer.pack
        self.array_header = self._packer.pack_array_header
        self.map_header = self._packer.pack_map_header
        self.arrays: list[bytes | np.ndarray] = []
        self.num_array_bytes = 0
        self.images: list[Image] = []
        self.depth = 0
        self._positions: dict[int | str, int] = {}

    def take(self) -> bytes:
        """The msgpack collected so far; the next piece starts empty."""
        packed = self._packer.bytes()
        self._packer.reset()
        return packed

    def add_array(self, array: np.ndarray) -> int:
        """Add an array to the array section and return its offset there."""
        padding = -self.num_array_bytes % ALIGNMENT
        if padding:
            self.arrays.append(bytes(padding))
        offset = self.num_array_bytes + padding
        self.arrays.append(np.ascontiguousarray(array))
        self.num_array_bytes = offset + array.nbytes
        return offset

    def add_image(self, image: Image) -> int:
        """Add an image and return its position in the frame's table; images with equal content share one position."""
        position = self._positions.get(id(image))
        if position is None:
            position = self._positions.setdefault(image.digest, len(self.images))
            if position == len(self.images):
                self.images.append(image)
            self._positions[id(image)] = position
        return position


class Reader:
    """Returns the scalars and lengths of a frame's msgpack, one at a time."""

    def __init__(self, body: memoryview, arrays: memoryview, limits: Limits) -> None:
        self._unpacker = msgpack.Unpacker(
            read_size=max(1, len(body)),
            max_buffer_size=max(1, len(body)),
            max_str_len=limits.max_text_bytes,
            max_array_len=0,
            max_map_len=0,
            max_bin_len=0,
            max_ext_len=0,
            unicode_errors=UNICODE,
        )
        self._unpacker.feed(body)
        self._body = body
        self.unpack = self._unpacker.unpack
        self.array_header = self._unpacker.read_array_header
        self.map_header = self._unpacker.read_map_header
        self.arrays = arrays
        self.limits = limits
        self.images: list[Image] = []
        self.depth = 0

    @property
    def num_left(self) -> int:
        """Number of msgpack bytes not yet read."""
        return len(self._body) - self._unpacker.tell()

    def length(self, header: Callable[[], int], expected: str) -> int:
        """The length of the container that `header` (`array_header` or `map_header`) reads."""
        try:
            length = header()
        except READ_ERRORS as error:
            raise self.fault(error, expected) from None
        self.limits.check_items(length)
        return length

    def fault(self, error: Exception, expected: str) -> Fault:
        """Convert an error into a fault that says what was found instead of `expected`."""
        if isinstance(error, Fault):
            return error
        offset = self._unpacker.tell()
        if isinstance(error, msgpack.OutOfData):
            return Fault(CorruptFrame, f"msgpack ends inside a value, at byte {offset} of {len(self._body)}")
        if isinstance(error, UnicodeDecodeError):
            return Fault(CorruptFrame, f"text is not UTF-8, at byte {offset} of {len(self._body)}")
        if "max_str_len" in str(error):
            return Fault(FrameTooLarge, f"text is above max_text_bytes {self.limits.max_text_bytes}: {error}")
        refused = next((name for limit, name in _REFUSED.items() if limit in str(error)), None)
        return Fault(WrongType, f"expected {expected}, got {refused or _token_name(self._body[offset])}")


READ_ERRORS = (Fault, ValueError, msgpack.UnpackException)
"""Exceptions that may be raised while a value is read; the last two are msgpack's."""

_REFUSED = {"max_array_len": "sequence", "max_map_len": "dict", "max_bin_len": "bytes", "max_ext_len": "extension type"}
"""The kind of value that msgpack met when its error names one of these limits; the exact byte position is then not known."""

_TOKENS = (
    (0x7F, "int"),
    (0x8F, "dict"),
    (0x9F, "sequence"),
    (0xBF, "str"),
    (0xC0, "None"),
    (0xC1, "a byte that msgpack never uses"),
    (0xC3, "bool"),
    (0xC6, "bytes"),
    (0xC9, "extension type"),
    (0xCB, "float"),
    (0xD3, "int"),
    (0xD8, "extension type"),
    (0xDB, "str"),
    (0xDD, "sequence"),
    (0xDF, "dict"),
    (0xFF, "int"),
)
"""The last first byte of each kind of msgpack value (msgpack specification, overview of formats)."""


def _token_name(byte: int) -> str:
    return next(name for last, name in _TOKENS if byte <= last)
