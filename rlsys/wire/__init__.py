"""Records as msgpack frames (`frames.py`), a codec per field type (`types.py`), and checked reading of bytes (`stream.py`)."""

from rlsys.wire.frames import SCHEMA, decode, decode_many, encode, encode_many
from rlsys.wire.stream import Limits

__all__ = ["SCHEMA", "Limits", "decode", "decode_many", "encode", "encode_many"]
