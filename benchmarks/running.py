"""Benchmarks one after another, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence


def run_all(names: Sequence[str], options: Sequence[str], *, run: Callable[[str, Sequence[str]], int]) -> list[str]:
    """Run one after another; says, and returns, which have failed."""
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = run(name, options)
        print(f"== {name}: {'done' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - started:.0f} s")
        failed += [name] if status else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return failed


def start(name: str, options: Sequence[str]) -> int:
    """Run one in a process of its own; its exit status."""
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode
