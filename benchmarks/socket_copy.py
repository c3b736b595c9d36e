"""The least that a weight update between two processes of a machine can cost: its bytes over one TCP connection."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import time
from types import TracebackType

import numpy as np

_LENGTH = struct.Struct("<Q")
_DONE = b"!"


class SocketCopy:
    """A process on another core that takes bytes into a buffer it has touched before.

    with SocketCopy(num_bytes, core=0) as copy:
        seconds = copy.send(data, core=1)
    """

    def __init__(self, num_bytes: int, *, core: int) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        words = [str(listener.getsockname()[1]), str(num_bytes), str(core)]
        self._process = subprocess.Popen([sys.executable, __file__, *words])
        self._connection, _ = listener.accept()
        self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.close()

    def send(self, data: np.ndarray, *, core: int) -> float:
        """Seconds until the other process has all of `data`; this thread is pinned to `core` meanwhile.

        Raises:
            ConnectionError: the other process is gone.
        """
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            started = time.perf_counter()
            self._connection.sendall(_LENGTH.pack(data.nbytes))
            self._connection.sendall(memoryview(data))
            if self._connection.recv(1) != _DONE:
                raise ConnectionError("the receiving process is gone")
            return time.perf_counter() - started
        finally:
            os.sched_setaffinity(0, before)

    def __enter__(self) -> SocketCopy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._connection.close()
        self._process.wait(10)


def receive(port: int, num_bytes: int, core: int) -> None:
    """The other process: take what comes until the connection is closed."""
    os.sched_setaffinity(0, {core})
    buffer = np.ones(num_bytes, np.uint8)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        while head := connection.recv(_LENGTH.size):
            (left,) = _LENGTH.unpack(head)
            place = memoryview(buffer)[:left]
            while place:
                place = place[connection.recv_into(place) :]
            connection.sendall(_DONE)


if __name__ == "__main__":
    receive(*map(int, sys.argv[1:]))
