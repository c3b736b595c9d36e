"""`rlsys critic`: train the critique reward model of the scenes world."""

from __future__ import annotations

import sys

from rlsys.app.command import run_with_host
from rlsys.app.models import policy_folder, role_folder


def main(words: list[str]) -> int:
    """Train the critic (and make the policy) if they are not cached; prints the critic's folder."""
    return run_with_host(
        words, lambda config, context: print(role_folder(config, context, policy_folder(config, context), "judge"))
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
