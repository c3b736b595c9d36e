"""A cache of the models that stages make, under the user's cache directory, keyed by a hash of everything that made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """`$RLSYS_CACHE`, else `rlsys/models` under `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("RLSYS_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlsys" / "models"


def digest(made_of: dict[str, Any]) -> str:
    """A short hash of JSON values; the order of a mapping's keys does not matter."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]


def folder_of(kind: str, made_of: dict[str, Any]) -> Path:
    """The folder that `cached` would return, whether it exists or not."""
    return cache_directory() / f"{kind}-{digest(made_of)}"


def cached(kind: str, made_of: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder that `make` fills from `made_of`; an earlier result is reused.

    A folder appears under its name only when it is complete. If two runs want the same folder, only one of them makes it.

    Args:
        kind: first part of the folder's name.
        made_of: JSON values that determine the result.
        make: fills the directory that it is given.
    """
    target = folder_of(kind, made_of)
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target.parent / f".{target.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        partial = target.parent / f".{target.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            make(partial)
            (partial / "made_of.json").write_text(json.dumps(made_of, indent=1, sort_keys=True))
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # an interrupted result, which no other key would ever remove
    return target
