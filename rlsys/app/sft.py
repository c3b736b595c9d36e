"""`rlsys sft`: make the starting policy of the scenes world with our own learner."""

from __future__ import annotations

import sys

from rlsys.app.command import run_with_host
from rlsys.app.models import policy_folder


def main(words: list[str]) -> int:
    """Make the policy if it is not cached; prints its folder."""
    return run_with_host(words, lambda config, context: print(policy_folder(config, context)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
