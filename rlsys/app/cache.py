"""Models made on the spot are kept under the user's cache directory, by the hash of everything that made them."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def cache_directory() -> Path:
    """`$RLSYS_CACHE`, else `rlsys/models` under `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("RLSYS_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rlsys" / "models"


def source_hash(modules: Iterable[str]) -> str:
    """sha256 over the Python files of modules and whole packages, given by name; only their parents are imported."""
    hasher = hashlib.sha256()
    for module in modules:
        spec = find_spec(module)
        folders = spec.submodule_search_locations
        paths = sorted(Path(folders[0]).rglob("*.py")) if folders else [Path(spec.origin)]
        for path in paths:
            hasher.update(path.name.encode() + b"\0" + path.read_bytes())
    return hasher.hexdigest()


def cached(kind: str, made_of: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """The folder made by `make` from `made_of`, now or earlier.

    A folder appears under its name only when it is whole; two runs that want the same one make it once.

    Args:
        kind: first part of the folder's name.
        made_of: JSON values that decide what comes out.
        make: fills the directory it is given.
    """
    key = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    target = cache_directory() / f"{kind}-{key}"
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
            shutil.rmtree(partial, ignore_errors=True)  # what was interrupted: another key would never look at it
    return target
