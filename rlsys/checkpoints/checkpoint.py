"""One round's state on disk, which is either complete or absent.

    checkpoints/round-0003/
        manifest.json     round, state, and size and sha256 of every other file
        policy/ ...       whatever `write` wrote

A checkpoint is written into a temporary folder beside its final place, and renamed once the disk has all of it. Writing the
checkpoint of a round again replaces the old one in a single step.

    path = save(root, 3, write=learner.save, state={"cursor": 96})
    latest(root) == path
    load_state(path)["cursor"] == 96
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlsys.errors import CheckpointError

FORMAT = 1
"""Version of the manifest's format."""

_MANIFEST = "manifest.json"
_TEMPORARY = ".writing-"
_REPLACED = ".replaced-"
_NAME = re.compile(rf"(?:{re.escape(_REPLACED)})?round-(\d+)")
_EXCHANGE = 2
"""`RENAME_EXCHANGE` of renameat2(2)."""
_AT_FDCWD = -100


def save(root: Path, round: int, write: Callable[[Path], None], state: dict[str, Any]) -> Path:
    """Write a round's checkpoint; it replaces an earlier checkpoint of the round.

    Args:
        root: folder of the checkpoints.
        round: number of the round.
        write: puts files into the empty folder that it is given; other processes may help it.
        state: JSON values with finite numbers; `load_state` returns an equal value.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: `state` would not be equal after loading, or `write` created something other than a plain file.
        Exception: whatever `write` raises; nothing is left of the checkpoint then.
    """
    if round < 0:
        raise ValueError(f"round must be at least 0, got {round}")
    text = _state_text(state)
    root.mkdir(parents=True, exist_ok=True)
    _clean(root)
    final = root / f"round-{round:04d}"
    temporary = root / f"{_TEMPORARY}{final.name}-{secrets.token_hex(4)}"
    temporary.mkdir()
    try:
        write(temporary)
        manifest = {"format": FORMAT, "round": round, "state": json.loads(text), "files": _describe(temporary)}
        manifest["sha256"] = _digest_of(manifest)
        (temporary / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        _sync(*temporary.rglob("*"), temporary)
        _put_in_place(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # the old checkpoint, or files that a failed `write` left
    return final


def latest(root: Path) -> Path | None:
    """The complete checkpoint of the highest round; `None` if there is none.

    A checkpoint counts as complete if its manifest is valid and every file has its size; only `verify` reads the files.
    """
    if not root.is_dir():
        return None
    return next((path for path in reversed(_rounds(root)) if _is_complete(path)), None)


def verify(path: Path) -> None:
    """Read every file of a checkpoint and compare it with the manifest.

    Raises:
        CheckpointError: the manifest or a file is missing or altered; the message has its path.
    """
    for name, expected in _manifest(path)["files"].items():
        file = path / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes instead of {expected['bytes']}")
        if _sha256(file) != expected["sha256"]:
            raise CheckpointError(f"{file} has other content than when it was saved")


def load_state(path: Path, *, check: bool = True) -> dict[str, Any]:
    """The `state` that a checkpoint was saved with.

    Args:
        path: the checkpoint's folder.
        check: verify all files first.

    Raises:
        CheckpointError: as `verify`.
    """
    if check:
        verify(path)
    return _manifest(path)["state"]


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all checkpoints older than the newest `keep` complete ones, and return what was removed.

    Raises:
        ValueError: `keep` is below 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}")
    paths = _rounds(root)
    complete = [path for path in paths if _is_complete(path)]
    if len(complete) <= keep:
        return []
    removed = paths[: paths.index(complete[-keep])]
    for path in removed:
        doomed = root / f"{_TEMPORARY}{path.name}-{secrets.token_hex(4)}"
        path.rename(doomed)  # so that a half-removed checkpoint is never seen
        shutil.rmtree(doomed)
    return removed


def _state_text(state: dict[str, Any]) -> str:
    try:
        text = json.dumps(state, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"state is no JSON: {error}") from error
    back = json.loads(text)
    for key, value in state.items():
        if key not in back or back[key] != value:
            raise CheckpointError(f"state[{key!r}] = {value!r} would come back as {back.get(str(key))!r}")
    return text


def _describe(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise CheckpointError(f"{path} is no plain file")
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    if _MANIFEST in files:
        raise CheckpointError(f"{_MANIFEST} is the checkpoint's own file, and was written by someone else")
    return files


def _manifest(path: Path) -> dict[str, Any]:
    file = path / _MANIFEST
    try:
        manifest = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{file} is missing") from None
    except ValueError as error:
        raise CheckpointError(f"{file} is no JSON: {error}") from error
    if not isinstance(manifest, dict) or "sha256" not in manifest:
        raise CheckpointError(f"{file} is no manifest")
    if manifest.pop("sha256") != _digest_of(manifest):
        raise CheckpointError(f"{file} has other content than when it was saved")
    if manifest["format"] != FORMAT:
        raise CheckpointError(f"{file} has format {manifest['format']}, this program reads {FORMAT}")
    return manifest


def _is_complete(path: Path) -> bool:
    try:
        files = _manifest(path)["files"]
    except CheckpointError:
        return False
    return all(
        (path / name).is_file() and (path / name).stat().st_size == each["bytes"] for name, each in files.items()
    )


def _digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rounds(root: Path) -> list[Path]:
    """Checkpoint folders, complete or not, lowest round first. A replaced checkpoint counts while its successor is missing."""
    found: dict[int, Path] = {}
    for path in sorted(root.iterdir()):  # replaced checkpoints come first
        match = _NAME.fullmatch(path.name)
        if match and path.is_dir():
            found[int(match[1])] = path
    return [found[round] for round in sorted(found)]


def _sync(*paths: Path) -> None:
    """Wait until the disk has these files and folders."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _put_in_place(new: Path, final: Path) -> None:
    """Give `new` the name `final`. A folder that had this name ends up where `new` was, or is removed."""
    if not final.exists():
        new.rename(final)
    elif not _exchange(new, final):
        replaced = final.with_name(_REPLACED + final.name)
        final.rename(replaced)  # after a kill here, `latest` and `_clean` still find the renamed folder
        new.rename(final)
        shutil.rmtree(replaced)
    _sync(final.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step; `False` where the system or the file system cannot do that."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    if renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise CheckpointError(number, f"cannot put {first} in place of {second}: {os.strerror(number)}")


def _clean(root: Path) -> None:
    """Remove the files of killed writers, and restore a checkpoint whose writer was killed between its two renames."""
    for path in root.glob(f"{_REPLACED}*"):
        final = root / path.name.removeprefix(_REPLACED)
        if final.exists():
            shutil.rmtree(path)
        else:
            path.rename(final)
    for path in root.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path)
