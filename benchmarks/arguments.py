"""What every benchmark understands on its command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

CORES = 2
"""That the targets are for, and that both sides of every comparison have, whatever the machine has."""


def parse(
    description: str, words: Sequence[str] | None = None, *, on_two_cores: bool = True, repeats: int = 5
) -> argparse.Namespace:
    """`--repeats N` (fewer than 5 for a first look) and `--only TEXT` (cases whose name contains it).

    Args:
        repeats: if not given.
        on_two_cores: from here on this process, and what it starts, sees two cores and no GPU.

    Returns:
        `repeats`, `only`, and `written`: the repeats that count for the file of results, none if cases were left out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=repeats, help="counted turns; fewer than 5 are not written down")
    parser.add_argument("--only", default="", help="only cases whose name contains this; nothing is then written down")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    if on_two_cores:
        confine()
    options.written = 0 if options.only else options.repeats
    return options


def confine() -> None:
    """Keep this process, and all that it starts, on the first `CORES` of its cores and away from GPUs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
