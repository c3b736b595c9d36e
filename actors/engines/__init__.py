"""Inference engines, one file each. An engine is a plug-in of group `engine`: a dataclass of options with one method,

    open(model, *, version=0, raw_logits=False) -> rlsys.contracts.Engine

that loads a checkpoint. The worker calls this method in its own process.
"""

from __future__ import annotations

import importlib
import pkgutil

from rlsys.registry import Registry

engine = Registry("engine")


def discover() -> None:
    """Import every built-in engine."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
