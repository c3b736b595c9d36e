"""What commands that need a cluster have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlsys.app import config as configuration
from rlsys.app.cluster import cluster
from rlsys.app.starting import Host
from rlsys.errors import ConfigError
from rlsys.progress import Progress, quiet_libraries


def run_with_host(words: list[str], body: Callable[[Any, Host], Any]) -> int:
    """Compose the configuration, join or start a cluster, and run `body` with both."""

    def inside(config: Any, tree: Any) -> int:
        if config.dry_run:
            raise ConfigError("dry_run=true prints the plan of rlsys align; this command has none")
        quiet_libraries()
        with cluster(config.ray_address) as machine, Progress() as progress:
            body(config, Host(machine=machine, progress=progress))
        return 0

    return configuration.run_command(words, inside)
