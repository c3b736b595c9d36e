"""Libraries that are imported at the first use of one of their attributes.

The command line imports every plug-in to learn its options, and importing torch takes two seconds. Plug-ins therefore import
torch from this module, so that a process which only composes a configuration and hands it on never imports it.

    from rlsys.common.lazy import torch
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any


class Lazy:
    """A placeholder for a module."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        found = getattr(importlib.import_module(self._name), attribute)
        setattr(self, attribute, found)
        return found


if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    import torch.nn.functional as functional
else:
    torch = Lazy("torch")
    dist = Lazy("torch.distributed")
    functional = Lazy("torch.nn.functional")
