"""How everything here is measured: two sides in turn, several times, in one run, and a ratio per turn.

The speed of a machine drifts, so an absolute speed says little. Where a row has another side, its figure is therefore the
ratio of two measurements that were made next to each other. Every figure is the median over the turns, with the smallest
and the largest.
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
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import device
from rlsys.report.metrics import versions

RESULTS = Path(__file__).parent / "results"
MIN_REPEATS = 5
"""A run with fewer turns is a first look: its results are not written."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line of a program."""

    device: str = "cpu"
    repeats: int = MIN_REPEATS
    """Counted turns of a case."""
    only: str = ""
    """Cases whose name contains this text."""

    def wants(self, case: str) -> bool:
        """Whether a case is to be run."""
        return self.only in case

    @property
    def written(self) -> bool:
        """Whether the results count: all cases, and enough turns."""
        return not self.only and self.repeats >= MIN_REPEATS


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
    """What a row's ratio, or its figure where there is no ratio, should reach."""

    at_least: float | None = None
    at_most: float | None = None

    def met(self, ratio: float) -> bool:
        above = self.at_least is None or ratio >= self.at_least
        return above and (self.at_most is None or ratio <= self.at_most)

    def __str__(self) -> str:
        low = "" if self.at_least is None else f"≥ {self.at_least:g}"
        return low if self.at_most is None else f"≤ {self.at_most:g}"


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The ratio that no arrangement of the same work could pass, as the same run measured it."""

    ratio: float
    why: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a program's table."""

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
    bound: Bound | None = None
    """Stands in the place of a target."""
    checked: str = ""
    """What shows that both sides did the same work."""
    note: str = ""
    """What else must be known to read the figures."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further figures."""

    @classmethod
    def versus(cls, figures: tuple[Spread, Spread, Spread], **more: Any) -> Row:
        """The row of what `in_turn` has measured."""
        return cls(ours=figures[0], other=figures[1], ratio=figures[2], **more)

    @property
    def met(self) -> bool | None:
        """Whether the target was reached; `None` without one."""
        if self.target is None:
            return None
        return self.target.met((self.ratio or self.ours).median)


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
    import torch

    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": measured_commit(),
        "cores": len(os.sched_getaffinity(0)),
        "processor": device.processor(),
        "memory_gib": round(device.memory_gib(), 1),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "python": platform.python_version(),
        "versions": versions() | ({"trl": metadata.version("trl")} if find_spec("trl") else {}),
    }


def write(name: str, title: str, rows: Sequence[Row], *, repeats: int, directory: Path = RESULTS) -> Path:
    """Write a program's rows to `<directory>/<name>.json`."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}.json"
    content = {
        "name": name,
        "title": title,
        "repeats": repeats,
        "measured": environment(),
        "rows": [{**asdict(row), "met": row.met} for row in rows],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def line(row: Row) -> str:
    """A row for a terminal."""
    ratio = "" if row.ratio is None else f"  x{_range(row.ratio)}"
    other = "" if row.other is None else f"  {row.other_name} {_range(row.other)}"
    verdict = {None: "", True: f"  target {row.target}: met", False: f"  target {row.target}: MISSED"}[row.met]
    bound = "" if row.bound is None else f"  bound {row.bound.ratio:.3g}"
    extra = ", ".join(f"{name} {short(value)}" for name, value in row.extra.items())
    told = [f"\n      {text}" for text in (extra, row.checked, row.note) if text]
    return f"  {row.case}: {_range(row.ours)} {row.unit}{other}{ratio}{verdict}{bound}" + "".join(told)


def _range(spread: Spread) -> str:
    return f"{short(spread.median)} ({short(spread.low)} to {short(spread.high)})"


def short(value: float) -> str:
    """A number with three digits."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _commit() -> str:
    """What was measured; "-dirty" if the tree differs from what was committed, other than by results and their page."""

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
    """The commit when a program begins; a program asks for it before it measures anything."""
    return _commit()


def measured_commit() -> str:
    """The commit at the start; "-dirty" too if the tree has changed since, as processes that started later saw that."""
    began = commit_at_start()
    return began if _commit() == began else f"{began.removesuffix('-dirty')}-dirty"
