"""What the commands that need a cluster have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlsys.app import config as configuration
from rlsys.app.cluster import cluster
from rlsys.app.starting import Context
from rlsys.errors import ConfigError
from rlsys.report.progress import Progress, quiet_libraries


def run_with_host(
    words: list[str], body: Callable[[Any, Context], Any], *, plan: Callable[[Any], str] | None = None
) -> int:
    """Compose the configuration, join or start a cluster, and run `body` with the configuration and the context.

    Args:
        words: command-line overrides.
        body: the command.
        plan: makes the text that `dry_run=true` prints instead of running; `None` if the command has no plan.
    """

    def inside(config: Any, tree: Any) -> int:
        if config.dry_run:
            if plan is None:
                raise ConfigError("dry_run=true prints the plan of rlsys align, train or bench; this command has none")
            print(plan(config))
            return 0
        quiet_libraries()
        with cluster(config.ray_address) as machine, Progress() as progress:
            body(config, Context(machine=machine, progress=progress))
        return 0

    return configuration.run_command(words, inside)
