"""Atomic replacement of files (a reader sees the old or the new content, never a part), hard links, and a lock file that only
one process holds.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsys.errors import ConfigError


def replace(path: Path, content: str | bytes) -> None:
    """Replace a file's content in one step; the content is on disk when this returns. Text is UTF-8."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    with open(beside, "wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def link(source: Path, target: Path) -> None:
    """Give a file, or all files of a folder, a second name. Where the file system has no hard links, the files are copied."""
    if source.is_dir():
        target.mkdir()
        for entry in source.iterdir():
            link(entry, target / entry.name)
        return
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def locked(path: Path, *, busy: str) -> Iterator[None]:
    """Hold a file's lock inside a `with` block; the lock of a process that dies is released.

    Raises:
        ConfigError: another process holds the lock; the message is `busy`.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(busy) from error
        yield
