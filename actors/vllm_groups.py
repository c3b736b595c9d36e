"""One network thread for all groups of an engine that is a single process.

vLLM makes 13 gloo groups even of one process, and every one has a device of its own, whose thread looks a hundred times a
second whether something came: 4% of a core for an engine that does nothing, 0.7% with one device for all. Of a busy one
they take 1% of the time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ADDRESS = "127.0.0.1"
"""No other process will connect."""


@contextmanager
def one_gloo_device() -> Iterator[None]:
    """Groups that torch makes within share one. They must be of this process alone: a tensor-parallel engine makes its own in
    its workers.
    """
    from torch.distributed import distributed_c10d

    usual = distributed_c10d.ProcessGroupGloo
    device = usual.create_device(hostname=ADDRESS)

    class Sharing(usual):
        def __init__(self, store: Any, rank: int, size: int, timeout: Any) -> None:
            options = usual._Options()
            options._timeout, options._devices = timeout, [device]
            super().__init__(store, rank, size, options)

    distributed_c10d.ProcessGroupGloo = Sharing
    try:
        yield
    finally:
        distributed_c10d.ProcessGroupGloo = usual
