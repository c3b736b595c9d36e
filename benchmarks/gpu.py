"""All measurements on one GPU, one after another, each in a process of its own, without those of `make bench` on CPU.

    python -m benchmarks.gpu                  # all; each writes benchmarks/results/gpu_<name>.json
    python -m benchmarks.gpu --only sync      # those whose name contains this
    python -m benchmarks.gpu --tiny           # every program with tiny models, also without a GPU; nothing is written

Without a GPU each says that it is not measured. They need no network; where the policy of the scenes world is needed, it
is made on the spot (or taken from `RLSYS_BENCH_MODELS`). Each also runs by itself: `python -m benchmarks.gpu_sync`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks import tables
from benchmarks.gpu_setup import on_gpu
from benchmarks.running import run_all, start

NAMES = tuple(tables.ON_GPU)
"""In the order in which they run."""


def main(words: Sequence[str] | None = None) -> int:
    """Run them; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="only those whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="tiny models, also without a GPU; nothing is written")
    parser.add_argument("--repeats", type=int, default=5, help="counted turns; fewer than 5 are not written down")
    options = parser.parse_args(words)
    chosen = [name for name in NAMES if options.only in name]
    if not chosen:
        parser.error(f"--only {options.only}: no such program; there are: {', '.join(NAMES)}")
    more = ["--tiny"] if options.tiny else ["--repeats", str(options.repeats)]
    failed = run_all(chosen, more, run=start)
    if on_gpu() and not options.tiny:
        tables.main()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
