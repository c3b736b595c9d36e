"""Faster imports of large libraries."""

from __future__ import annotations

import gc
import importlib
import sys


def import_at_once(*names: str) -> None:
    """Import modules with garbage collection paused; nothing happens if all are imported already.

    Every collection visits all objects that earlier imports have created and that stay alive, a million objects for vLLM. The
    objects alive at the end are therefore also excluded from later collections.
    """
    if all(name in sys.modules for name in names):
        return
    was_on = gc.isenabled()
    gc.collect()  # objects that are garbage now must not be excluded with the others
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
        gc.freeze()
    finally:
        if was_on:
            gc.enable()
