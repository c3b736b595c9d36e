"""Memory that a step frees is kept for the next one.

glibc returns large blocks to the system as soon as they are free, and every step then waits for the system to clear
them again, page by page.
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc refuses more."""
_KEPT_BYTES = 1 << 30


def keep_freed_memory() -> bool:
    """Set the process's allocator so, up to 1 GiB; blocks of 32 MiB and more are still returned at once.

    Returns:
        Whether there is such an allocator.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_THRESHOLD: _LARGEST_MMAP_THRESHOLD, _M_TRIM_THRESHOLD: _KEPT_BYTES}
    return all(bool(mallopt(option, value)) for option, value in settings.items())
