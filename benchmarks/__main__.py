"""All benchmarks that fit this machine, one after another, each in a process of its own; then the page.

python -m benchmarks                     # all
python -m benchmarks wire overlap        # some
python -m benchmarks wire --repeats 1    # options after the names go to each of them
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from benchmarks import tables


def main(words: Sequence[str], *, run: Callable[[str, Sequence[str]], int] | None = None) -> int:
    """Run benchmarks by name.

    Args:
        words: names, then options for each of them; no name means all.
        run: starts one and returns its exit status; another is for tests.

    Returns:
        0, or 1 if one failed; 2 if a name is not known.
    """
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = list(words[:at]) or available(), words[at:]
    unknown = [name for name in names if name not in tables.NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(tables.NAMES)}", file=sys.stderr)
        return 2
    failed = []
    for name in names:
        print(f"== {name}", flush=True)
        started = time.monotonic()
        status = (run or start)(name, options)
        print(f"== {name}: {'done' if status == 0 else f'FAILED ({status})'} in {time.monotonic() - started:.0f} s")
        failed += [name] if status else []
    tables.main()
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def available() -> list[str]:
    """Those that are there."""
    return [name for name in tables.NAMES if find_spec(f"benchmarks.{name}") is not None]


def start(name: str, options: Sequence[str]) -> int:
    """Run one in a process of its own; its exit status."""
    return subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *options], check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
