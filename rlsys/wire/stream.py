"""The two ends of a frame's content: a `Writer` that collects it, a `Reader` that hands it out piece by piece.

The reader meets no container it was not asked for, and allocates nothing before the bytes for it are there: msgpack's
own nested decoding is off, and arrays are views.
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
"""How text is encoded: lone surrogates are part of a valid `str`, and come back as they were."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a frame may hold; above it, both ends raise `FrameTooLarge`.

    Raises:
        ValueError: a limit is below 1.
    """

    max_bytes: int = 1 << 30
    """Of a whole frame."""
    max_depth: int = 32
    """Records within records."""
    max_items: int = 1 << 20
    """Of one tuple, one dict, or the image table."""
    max_text_bytes: int = 1 << 24
    """Of one text, as UTF-8."""

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
    """What is wrong with a value; each level on the way up adds its step to the path."""

    def __init__(self, error: type[WireError], message: str) -> None:
        super().__init__(message)
        self.error = error
        self.path = ""

    def at(self, step: str) -> Fault:
        self.path = step + self.path
        return self

    def raised(self, root: str) -> WireError:
        """The public error, its path starting at `root`."""
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
        """The msgpack so far; the next piece starts empty."""
        packed = self._packer.bytes()
        self._packer.reset()
        return packed

    def add_array(self, array: np.ndarray) -> int:
        """Offset that the array's bytes get in the array section."""
        padding = -self.num_array_bytes % ALIGNMENT
        if padding:
            self.arrays.append(bytes(padding))
        offset = self.num_array_bytes + padding
        self.arrays.append(np.ascontiguousarray(array))
        self.num_array_bytes = offset + array.nbytes
        return offset

    def add_image(self, image: Image) -> int:
        """Position of the image in the frame's table; images of equal content share one."""
        position = self._positions.get(id(image))
        if position is None:
            position = self._positions.setdefault(image.digest, len(self.images))
            if position == len(self.images):
                self.images.append(image)
            self._positions[id(image)] = position
        return position


class Reader:
    """Hands out the scalars and lengths of a frame's msgpack, one at a time."""

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
        """Bytes of msgpack not yet read."""
        return len(self._body) - self._unpacker.tell()

    def length(self, header: Callable[[], int], expected: str) -> int:
        """The length of the container that `header` (`array_header` or `map_header`) finds."""
        try:
            length = header()
        except READ_ERRORS as error:
            raise self.fault(error, expected) from None
        self.limits.check_items(length)
        return length

    def fault(self, error: Exception, expected: str) -> Fault:
        """Turn what came up into a fault that says what stood there instead of `expected`."""
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
"""What may come up while a value is read; the last two are msgpack's."""

_REFUSED = {"max_array_len": "sequence", "max_map_len": "dict", "max_bin_len": "bytes", "max_ext_len": "extension type"}
"""What msgpack met when it names one of these limits; where it did is then not known to the byte."""

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
"""Last first byte of each kind of msgpack value (msgpack specification, overview of formats)."""


def _token_name(byte: int) -> str:
    return next(name for last, name in _TOKENS if byte <= last)
