"""Records as msgpack frames (`frames.py`), field by field (`types.py`), read and checked from bytes (`stream.py`)."""

from rlsys.wire.frames import SCHEMA, decode, decode_many, encode, encode_many
from rlsys.wire.stream import Limits

__all__ = ["SCHEMA", "Limits", "decode", "decode_many", "encode", "encode_many"]
