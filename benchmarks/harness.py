"""How everything here is measured: two sides in turn, several times, in one run, and a ratio per turn.

Machines drift, so an absolute speed says little and a ratio of two medians taken minutes apart hardly more. Where there
is another side, the figure is therefore a ratio of two measurements made next to each other; every figure is the median
over the repeats with its smallest and largest.
"""

from __future__ import annotations

import functools
import json
import math
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import cpu
from rlsys.report.metrics import versions

RESULTS = Path(__file__).parent / "results"
MIN_REPEATS = 5
"""Fewer are allowed for a first look, and are then not written down."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Median, smallest and largest of several measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """
        Raises:
            ValueError: no values.
        """
        return cls(median=median(values), low=min(values), high=max(values))


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a row's ratio should reach."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        above = self.at_least is None or ratio >= self.at_least
        return above and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        low = "" if self.at_least is None else f"≥ {self.at_least:g}"
        return low if self.at_most is None else f"≤ {self.at_most:g}"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a benchmark's table."""

    case: str
    ours: Spread
    """In `unit`."""
    other: Spread | None = None
    """The other side, in `unit`; `None` where there is none."""
    other_name: str = ""
    ratio: Spread | None = None
    """Ours over the other side's, turn by turn."""
    unit: str = ""
    target: Target | None = None
    checked: str = ""
    """What shows that both sides did the same work."""
    note: str = ""
    """Why a target was missed, or what else must be known to read the figures."""
    extra: dict[str, float] = field(default_factory=dict)
    """More figures, such as the bound by FLOPs."""

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; `None` without one."""
        if self.target is None:
            return None
        return self.target.met((self.ratio or self.ours).median)


def of_the_fastest(modes: Sequence[Row], target: Target) -> list[Row]:
    """Rows of one thing run in several ways; the fastest, which is the one to take, has the target."""
    fastest = max((row.ours.median for row in modes), default=0.0)
    return [replace(row, target=target) if row.ours.median == fastest else row for row in modes]


def in_turn(
    ours: Callable[[], float], other: Callable[[], float], *, repeats: int, warmup: int = 1
) -> tuple[Spread, Spread, Spread]:
    """Measure two sides in turn, each turn in the other order than the one before.

    Args:
        ours, other: do the work once and return the figure (seconds, or units per second).
        warmup: turns that are not counted.

    Returns:
        Ours, the other side's, and ours over the other side's.
    """
    pairs = []
    for turn in range(warmup + repeats):
        if turn % 2:
            b, a = other(), ours()
        else:
            a, b = ours(), other()
        if turn >= warmup:
            pairs.append((a, b))
    return Spread.of([a for a, _ in pairs]), Spread.of([b for _, b in pairs]), Spread.of([a / b for a, b in pairs])


def seconds(work: Callable[[], Any]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def environment() -> dict[str, Any]:
    """What a figure depends on besides the code: commit, versions, cores, memory, GPU."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": measured_commit(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": cpu.name(),
        "memory_gib": round(memory_gib(), 1),
        "gpus": _gpus(),
        "python": platform.python_version(),
        "versions": versions() | _version("trl"),
    }


def memory_gib() -> float:
    """Of this machine, used or free."""
    with open("/proc/meminfo") as lines:
        return int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) / (1 << 20)


def write(name: str, title: str, rows: Sequence[Row], *, repeats: int, directory: Path = RESULTS) -> Path | None:
    """Print a benchmark's table and write it to `<directory>/<name>.json`.

    Args:
        repeats: turns that count; 0 if cases were left out.

    Returns:
        The file, or `None` if there were fewer than `MIN_REPEATS` repeats and nothing was written.
    """
    print(table(title, rows))
    if repeats < MIN_REPEATS:
        print(f"not written: a file needs all cases, and {MIN_REPEATS} repeats")
        return None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    content = {
        "name": name,
        "title": title,
        "repeats": repeats,
        "measured": environment(),
        "rows": [_plain(r) for r in rows],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def table(title: str, rows: Sequence[Row]) -> str:
    """A benchmark's rows for a terminal."""
    lines = [title]
    for row in rows:
        ratio = "" if row.ratio is None else f"  x{_range(row.ratio)}"
        other = "" if row.other is None else f"  {row.other_name} {_range(row.other)}"
        verdict = {None: "", True: f"  target {row.target}: met", False: f"  target {row.target}: MISSED"}[row.met]
        lines.append(f"  {row.case}: {_range(row.ours)} {row.unit}{other}{ratio}{verdict}")
        extra = ", ".join(f"{name} {_short(value)}" for name, value in row.extra.items())
        lines += [f"      {text}" for text in (extra, row.checked, row.note) if text]
    return "\n".join(lines)


def _plain(row: Row) -> dict[str, Any]:
    return {**asdict(row), "met": row.met}


def _range(spread: Spread) -> str:
    return f"{_short(spread.median)} ({_short(spread.low)} to {_short(spread.high)})"


def _short(value: float) -> str:
    if value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _commit() -> str:
    """What was measured; "-dirty" if it is not what was committed, but for the results that earlier benchmarks left."""

    def git(*words: str) -> str:
        run = ["git", "-C", str(RESULTS.parent.parent), *words]
        return subprocess.run(run, capture_output=True, text=True, check=False).stdout.strip()

    if shutil.which("git") is None:
        return "unknown"
    written = (f":!benchmarks/{name}" for name in (RESULTS.name, "README.md"))
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", *written)
    return (git("rev-parse", "--short", "HEAD") or "unknown") + ("-dirty" if changed else "")


@functools.cache
def commit_at_start() -> str:
    """What is there when a program begins, which asks for it before it measures anything."""
    return _commit()


def measured_commit() -> str:
    """What was measured; "-dirty" too if it changed meanwhile, as processes that were started later had the changes."""
    began = commit_at_start()
    return began if _commit() == began else f"{began.removesuffix('-dirty')}-dirty"


def _gpus() -> list[str]:
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _version(package: str) -> dict[str, str]:
    from importlib import metadata

    try:
        return {package: metadata.version(package)}
    except metadata.PackageNotFoundError:  # the rival is not needed on a user's machine
        return {}
