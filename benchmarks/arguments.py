"""What every benchmark understands on its command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parse(description: str, words: Sequence[str] | None = None) -> argparse.Namespace:
    """`--repeats N` (5; fewer for a first look) and `--only TEXT` (cases whose name contains it).

    Returns:
        `repeats`, `only`, and `written`: the repeats that count for the file of results, none if cases were left out.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--repeats", type=int, default=5, help="counted turns; fewer than 5 are not written down")
    parser.add_argument("--only", default="", help="only cases whose name contains this; nothing is then written down")
    options = parser.parse_args(words)
    if options.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {options.repeats}")
    options.written = 0 if options.only else options.repeats
    return options
