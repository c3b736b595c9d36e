"""Make the environment of this checkout at `.venv`. Standard library only; started by `make env` through env.sh.

Two layers, so that two checkouts with the same lock share what is large and neither sees the other's code:

- `<cache>/rlsys/env-<key>`: a virtual environment with every package of requirements/cpu.txt and the torchvision hook.
  The key is made from the lock, the hook and the interpreter, so that a changed lock gets a new environment.
- `.venv`: a virtual environment of a few files that sees the packages of the first and holds this checkout, editable.

Each layer is complete when its marker says so, and the marker is written last: what a killed run left is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
LOCK = HERE / "cpu.txt"
HOOK = HERE / "torchvision_hook.py"
MARKER = "rlsys-environment"
BUILD_TOOLS = ("setuptools", "wheel")
IMPORTED = (
    "import deepspeed, peft, datasets; from transformers import AutoModelForImageTextToText, AutoProcessor",
    "import ray; from vllm import LLM, SamplingParams",
)
"""What the processes of a run import, in halves that two cores can share."""
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
REQUIRED_FREE_BYTES = 6 * 2**30
PROGRESS_EVERY_S = 10.0
ADDRESS = re.compile(r"\b(?:https?|file)://\S+")
NOT_SCRIPTS = re.compile(r"python.*|activate.*", re.IGNORECASE)


class PipFailed(Exception):
    """pip did not end well; the text is what it said."""


def say(message: str) -> None:
    print(f"env: {message}", flush=True)


def digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def pins() -> dict[str, str]:
    """The lock's lines by package name."""
    lines = LOCK.read_text().splitlines()
    return {line.split("==")[0]: line for line in lines if line and not line.startswith("#")}


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/rlsys`, or `~/.cache/rlsys`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "rlsys"


def pip_environment() -> dict[str, str]:
    """The caller's environment without what would send packages elsewhere or change which are taken."""
    dropped = (
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_CONSTRAINT",
        "PIP_REQUIRE_HASHES",
        "PYTHONPATH",
        "PYTHONHOME",
    )
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    # A user's pip configuration may say `user = true`, which pip refuses inside a virtual environment.
    return kept | {"PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "DS_BUILD_OPS": "0"}


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on a file or directory; the system lets go of it however this process ends."""
    # Over NFS only what is open for writing can be locked; a directory cannot be.
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is making {what}; waiting for it ...")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def is_complete(directory: Path, key: str) -> bool:
    """Whether `directory` was made to its end for `key`, and its interpreter is still there."""
    marker = directory / MARKER
    return marker.is_file() and marker.read_text() == key and (directory / "bin" / "python").exists()


def mark(directory: Path, text: str) -> None:
    """Write the marker, whole or not at all."""
    scratch = directory / f"{MARKER}.new"
    scratch.write_text(text)
    scratch.replace(directory / MARKER)


def site_packages(directory: Path) -> Path:
    return directory / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def run_pip(directory: Path, arguments: list[str], total: int = 0) -> None:
    """Run the environment's pip quietly, with a line now and then if `total` packages are awaited.

    Raises:
        PipFailed: with what pip called an error, without addresses.
    """
    command = [str(directory / "bin" / "python"), "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    process = subprocess.Popen(
        [*command, *arguments],
        stdin=DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=pip_environment(),
    )
    lines: list[str] = []
    seen, started, spoken = 0, time.monotonic(), time.monotonic()
    for line in process.stdout:
        lines.append(ADDRESS.sub("<index>", line.rstrip())[:300])
        seen += line.startswith("Collecting ")
        if total and line.startswith("Installing "):
            say(f"all packages are here ({time.monotonic() - started:.0f} s), installing them ...")
        elif seen < total and time.monotonic() - spoken > PROGRESS_EVERY_S and line.startswith("Collecting "):
            spoken = time.monotonic()
            say(f"fetched {seen} of {total} packages ({spoken - started:.0f} s) ...")
    if process.wait() != 0:
        errors = [line for line in lines if line.startswith("ERROR:") and "Ignored the following" not in line]
        raise PipFailed("\n".join(errors or lines[-15:]))


def install_torch(directory: Path, pin: str) -> None:
    """Install the CPU build of torch, from PyTorch's own index where the configured one has only the CUDA build."""
    try:
        run_pip(directory, ["--no-compile", "--quiet", pin])
    except PipFailed:
        say(f"the package index has no {pin}; trying PyTorch's own ...")
        run_pip(directory, ["--no-compile", "--quiet", "--index-url", TORCH_CPU_INDEX, pin])


def make_packages(directory: Path, key: str) -> None:
    """Make the layer of third-party packages."""
    free = shutil.disk_usage(directory.parent).free
    if free < REQUIRED_FREE_BYTES:
        needed = f"{REQUIRED_FREE_BYTES / 2**30:.0f} GiB are needed"
        raise SystemExit(
            f"env: {directory.parent} has {free / 2**30:.1f} GiB free and {needed}; "
            "make room, or choose another place with XDG_CACHE_HOME"
        )
    pinned = pins()
    say(f"installing {len(pinned)} packages to {directory}; once for this lock, some minutes")
    shutil.rmtree(directory, ignore_errors=True)
    subprocess.run([sys.executable, "-I", "-m", "venv", str(directory)], check=True)
    # deepspeed and others are built from source, without isolation so that nothing unpinned is fetched for it.
    run_pip(directory, ["--quiet", *(pinned[name] for name in BUILD_TOOLS)])
    install_torch(directory, pinned["torch"])
    run_pip(directory, ["--no-compile", "-r", str(LOCK)], total=len(pinned))
    spec = importlib.util.spec_from_file_location("torchvision_hook", HOOK)
    hook = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hook)
    hook.install_in_environment(site_packages(directory))
    write_bytecode(directory)
    mark(directory, key)


def write_bytecode(directory: Path) -> None:
    """Import what every run imports, once. All processes of a first run would otherwise compile the same at the same
    time; compiling everything that is installed would take longer than installing.
    """
    say("compiling what runs import ...")
    python = str(directory / "bin" / "python")
    started = [subprocess.Popen([python, "-c", line], stdout=DEVNULL, stderr=DEVNULL) for line in IMPORTED]
    failed = [process for process in started if process.wait()]
    if failed:
        say("not everything could be imported; rlsys doctor says what is wrong")


def link_scripts(packages: Path, venv: Path) -> None:
    """Give `venv` the console scripts of `packages`, started by its own interpreter."""
    for source in sorted((packages / "bin").iterdir()):
        if NOT_SCRIPTS.fullmatch(source.name):
            continue
        target = venv / "bin" / source.name
        content = source.read_bytes()
        lines = content.split(b"\n")
        # pip writes `#!interpreter`, or three lines of shell where the interpreter's path is long or has a space.
        shell = lines[0] == b"#!/bin/sh" and len(lines) > 2 and lines[1].startswith(b"'''exec'")
        if not shell and not (lines[0].startswith(b"#!") and b"python" in lines[0]):
            target.symlink_to(source)
            continue
        head = f"#!/bin/sh\n'''exec' \"{venv / 'bin' / 'python'}\" \"$0\" \"$@\"\n' '''\n".encode()
        target.write_bytes(head + b"\n".join(lines[3 if shell else 1 :]))
        target.chmod(0o755)


def make_checkout(venv: Path, packages: Path, key: str) -> None:
    """Make the layer of this checkout."""
    say(f"linking {venv} to {packages}")
    if venv.is_symlink() or venv.is_file():
        venv.unlink()
    elif venv.exists() and any(venv.iterdir()) and not (venv / MARKER).exists():
        raise SystemExit(f"env: {venv} is there and was not made by `make env`; move it away and try again")
    else:
        shutil.rmtree(venv, ignore_errors=True)
    venv.mkdir()
    mark(venv, "unfinished")
    subprocess.run([sys.executable, "-I", "-m", "venv", "--without-pip", str(venv)], check=True)
    # addsitedir, unlike a plain path, also runs the .pth files there, among them the torchvision hook's.
    line = f"import site; site.addsitedir({str(site_packages(packages))!r})\n"
    (site_packages(venv) / "rlsys_packages.pth").write_text(line)
    link_scripts(packages, venv)
    run_pip(venv, ["--quiet", "--editable", str(ROOT)])
    mark(venv, key)


def refuse_path(path: Path) -> None:
    """Shells and PATH would take these for their own, in scripts that pip writes too."""
    found = sorted(set(str(path)) & set(':$`"\\\n'))
    if found:
        raise SystemExit(f"env: {path} has {' '.join(map(repr, found))} in its path; clone to a folder without")


def main() -> int:
    """Make what is missing; a second call finds everything made and does nothing."""
    refuse_path(ROOT)
    interpreter = (platform.python_version(), platform.machine(), sys.base_prefix)
    packages_key = digest(*pins().values(), HOOK.read_text(), *interpreter)
    packages = cache_directory() / f"env-{packages_key}"
    packages.parent.mkdir(parents=True, exist_ok=True)
    guard = packages.with_suffix(".lock")
    guard.touch()
    with held(guard, "the same environment"):
        if not is_complete(packages, packages_key):
            make_packages(packages, packages_key)
    venv = ROOT / ".venv"
    venv_key = digest(str(ROOT), str(packages), Path(__file__).read_text(), (ROOT / "pyproject.toml").read_text())
    with held(ROOT, "this checkout's .venv"):
        if not is_complete(venv, venv_key):
            make_checkout(venv, packages, venv_key)
    say(f"ready: {venv}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except PipFailed as failure:
        raise SystemExit(f"env: pip failed:\n{failure}") from None
