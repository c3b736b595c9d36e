"""Large libraries, imported in less time."""

from __future__ import annotations

import gc
import importlib
import sys


def import_at_once(*names: str) -> None:
    """Import modules without collecting garbage meanwhile; nothing happens if all are there.

    Every collection walks all that earlier imports have made, which stays: a million objects of vLLM's. What is there at the
    end is therefore spared by later collections too.
    """
    if all(name in sys.modules for name in names):
        return
    was_on = gc.isenabled()
    gc.collect()  # what nobody uses now must not be spared with the rest
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
        gc.freeze()
    finally:
        if was_on:
            gc.enable()
