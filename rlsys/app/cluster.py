"""The Ray cluster of a run: the run starts one or joins one, and leaves no process behind."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rlsys.errors import ConfigError
from rlsys.placement.machine import GIB, Machine, may_have_gpus, this_machine
from rlsys.placement.packing import Node
from rlsys.report.progress import QUIET_ENV

OBJECT_STORE_BYTES = 512 * 1024 * 1024
"""Size of the object store in a cluster that the run starts: it holds the frames of the few batches in flight."""
TEMPORARY = "rlsys-"
"""Prefix of the names of Ray's folders; the process's number follows it."""
UNUSED_PROCESSES = ("start_api_server", "start_monitor", "start_log_monitor")
"""Methods of Ray's node that start processes which a cluster started by the run does not need."""
UNUSED_WORK = {
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": str(24 * 3600 * 1000),
    "RAY_event_stats": "0",
}
"""Environment that stops Ray's daemons from measuring themselves and all processes every few seconds. Those measurements are
for a dashboard that a cluster started by the run does not have; on two cores they cost the actors several percent.
"""

NICENESS = "5"
"""Niceness of the actors in a cluster that the run starts. They give way to the driver's threads, which hand out work, and some
range is left in which roles can give way to others (`Placement.niceness`). Ray's own value, 15, leaves little range.
"""


@contextmanager
def cluster(address: str | None) -> Iterator[Machine]:
    """Join or start a Ray cluster for the time of a `with` block; yields a description of its resources.

    Args:
        address: as `RunConfig.ray_address`.

    Raises:
        ConfigError: there is no cluster at the address.

    A SIGTERM ends the block as Ctrl-C does, so that actors are stopped in order.
    """
    import ray

    address = address or ("auto" if os.environ.get("RAY_ADDRESS") else "local")
    own = address == "local"
    for name, value in (QUIET_ENV | (UNUSED_WORK if own else {})).items():
        os.environ.setdefault(name, value)
    options: dict[str, Any] = {"address": address, "logging_level": logging.ERROR, "log_to_driver": False}
    if own:
        os.environ.setdefault("RAY_worker_niceness", NICENESS)
        machine = this_machine(**_gpus_here())
        options |= {
            "num_cpus": int(machine.num_cpus),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_temp_dir": _temporary(),
        }
    before = signal.getsignal(signal.SIGTERM)
    with _lean() if own else nullcontext():
        try:
            ray.init(**options)
        except ConnectionError as error:
            raise ConfigError(f"ray_address={address}: {error}") from error
    signal.signal(signal.SIGTERM, _interrupt)  # Ray installed its own handler
    try:
        yield machine if own else _whole_cluster(ray)
    finally:
        ray.shutdown()
        signal.signal(signal.SIGTERM, before)
        if own:
            _remove(options["_temp_dir"])


def look(address: str | None) -> Machine | None:
    """The resources that are there, found without starting anything; `None` if that would need joining a cluster."""
    if address or os.environ.get("RAY_ADDRESS"):
        return None
    return this_machine(**_gpus_here())


@contextmanager
def _lean() -> Iterator[None]:
    """Let a cluster for one machine and one run start without the processes that rlsys never uses: the dashboard server, the
    autoscaler, the reader of the workers' logs, and the dashboard agent's work where the dashboard is installed. Ray has no
    option for that: it starts them even with `include_dashboard=False`, and waits for the server and the agent.
    """
    from ray._private import utils
    from ray._private.node import Node

    instead = {(Node, name): lambda self, *arguments, **options: None for name in UNUSED_PROCESSES}
    # Ray calls this function to find out whether the agent should be that of an installation without the dashboard.
    instead[utils, "get_dashboard_dependency_error"] = lambda: ImportError("not asked for")
    found = {(owner, name): vars(owner)[name] for owner, name in instead if name in vars(owner)}
    for owner, name in found:
        setattr(owner, name, instead[owner, name])
    try:
        yield
    finally:
        for (owner, name), before in found.items():
            setattr(owner, name, before)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _gpus_here() -> dict[str, float]:
    if not may_have_gpus():  # importing torch takes two seconds
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count()))
    return {"num_gpus": float(torch.cuda.device_count()), "gpu_memory_gib": memory / GIB}


def _whole_cluster(ray: Any) -> Machine:
    from ray._private.state import available_resources_per_node

    free = ray.available_resources()
    per_node = available_resources_per_node().values()
    alone = len(per_node) == 1
    nobody_else = free.get("CPU") == ray.cluster_resources().get(
        "CPU"
    )  # otherwise those cores may belong to another run
    here = this_machine()
    return Machine(
        num_cpus=free.get("CPU", 0.0),
        num_gpus=free.get("GPU", 0.0),
        memory_gib=here.memory_gib if alone else free.get("memory", 0.0) / GIB,
        cores=here.cores[: int(free["CPU"])] if alone and nobody_else and not free.get("GPU") else (),
        nodes=tuple(
            Node(
                num_cpus=node.get("CPU", 0.0),
                num_gpus=node.get("GPU", 0.0),
                memory_gib=here.memory_gib if alone else node.get("memory", 0.0) / GIB,
            )
            for node in per_node
        ),
    )


def _temporary() -> str:
    """Make a folder for Ray's files. Its name is short, because socket paths below it have a length limit. The folders of
    processes that were killed before they could clean up are removed.
    """
    root = Path(tempfile.gettempdir())
    for folder in root.glob(f"{TEMPORARY}*-*"):
        owner = folder.name.removeprefix(TEMPORARY).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists() and folder.stat().st_uid == os.getuid():
            _remove(str(folder))
    return tempfile.mkdtemp(prefix=f"{TEMPORARY}{os.getpid()}-")


def _remove(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)  # Ray's last processes may still write there
