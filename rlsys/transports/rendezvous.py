"""The rendezvous of a transport's sender and receivers: a store on the learner's machine, and waits with deadlines."""

from __future__ import annotations

import socket
import time
from datetime import timedelta
from typing import Any

from rlsys.common.lazy import dist
from rlsys.errors import SyncError, SyncTimeout

POLL_S = 0.001
"""Interval at which a wait polls its condition."""


def serve_store(deadline_s: float) -> dist.TCPStore:
    """Serve a new rendezvous store on a free port of this machine."""
    return dist.TCPStore("0.0.0.0", 0, None, True, timedelta(seconds=deadline_s), wait_for_workers=False)


def join_store(host: str, port: int, deadline_s: float) -> dist.TCPStore:
    """Join the rendezvous store of a sender.

    Raises:
        SyncTimeout: there is no answer at this address before the deadline.
    """
    try:
        return dist.TCPStore(host, port, None, False, timedelta(seconds=deadline_s), wait_for_workers=False)
    except dist.DistError as error:
        raise SyncTimeout(f"no sender of weights at {host}:{port} within {deadline_s:g} s: {error}") from error


def gather(store: dist.TCPStore, world_size: int, deadline_s: float) -> None:
    """A barrier: the call returns once all `world_size` members, the sender included, have called it.

    Raises:
        SyncTimeout: some members did not call it before the deadline; the message counts those that did.
    """
    store.add("present", 1)
    wait_until(
        lambda: store.add("present", 0) >= world_size,
        deadline_s,
        lambda: f"{store.add('present', 0)} of {world_size} ends (sender included) came together",
    )


def wait_until(done: Any, deadline_s: float, what: Any) -> None:
    """Poll `done()` until it is true.

    Raises:
        SyncTimeout: it is still false after `deadline_s`; the message begins with `what()`.
    """
    end = time.monotonic() + deadline_s
    while not done():
        if time.monotonic() > end:
            raise SyncTimeout(f"{what()} within {deadline_s:g} s")
        time.sleep(POLL_S)


def failure(error: BaseException, what: str, deadline_s: float) -> SyncError:
    """Translate an error of a communication library into a `SyncTimeout` or a `SyncError`."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if "timed out" in str(error).lower() or "timeout" in str(error).lower():
        return SyncTimeout(f"{what} did not end within {deadline_s:g} s: {text}")
    return SyncError(f"{what} failed, the other end is lost: {text}")


def own_address(towards: tuple[str, int] = ("192.0.2.1", 9)) -> str:
    """The address of this machine's interface towards another machine (by default: towards the network).

    Nothing is sent, because connecting a datagram socket only consults the routing table. Without a network, the result is the
    loopback address.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(towards)
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
