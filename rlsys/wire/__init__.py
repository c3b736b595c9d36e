"""Records as msgpack frames (`frames.py`), field by field (`types.py`), and as a stream of frames (`stream.py`)."""

from rlsys.wire.frames import *  # noqa: F403
