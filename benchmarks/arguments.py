"""What every benchmark understands on its command line."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence

from benchmarks.harness import commit_at_start

CORES = 2
"""That the targets are for, and that both sides of every comparison have, whatever the machine has."""


def parse(
    description: str,
    words: Sequence[str] | None = None,
    *,
    cases: Iterable[str] = (),
    on_two_cores: bool = True,
    repeats: int = 5,
) -> argparse.Namespace:
    """`--repeats N` (fewer than 5 for a first look) and `--only TEXT` (cases whose name contains it).

    Exits if no case has such a name.

    Args:
        cases: names of all; a program that has none takes no `--only`.
        repeats: if not given.
        on_two_cores: from here on this process, and what it starts, sees two cores and no GPU.

    Returns:
        `repeats`, `cases`: names of those to be run, and `written`: the repeats that count for the file of results,
        none if cases were left out.
    """
    commit_at_start()
    parser, names = argparse.ArgumentParser(description=description), list(cases)
    parser.add_argument("--repeats", type=int, default=repeats, help="counted turns; fewer than 5 are not written down")
    if names:
        told = "only cases whose name contains this; nothing is then written down"
        parser.add_argument("--only", default="", help=told)
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    options.only = options.only if names else ""
    options.cases = [name for name in names if options.only in name]
    if names and not options.cases:
        parser.error(f"--only {options.only}: no such case; there are: {'; '.join(names)}")
    if on_two_cores:
        confine()
    options.written = 0 if options.only else options.repeats
    return options


def confine() -> None:
    """Keep this process, and all that it starts, on the first `CORES` of its cores and away from GPUs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
