"""Groups of one process share a network thread, and do what groups do."""

import time
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed
from torch.distributed import distributed_c10d

from actors.vllm_groups import one_gloo_device


def network_threads():
    threads = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile: another test's perhaps
            if (task / "comm").read_text().strip() == "gloo_tcp_loop":
                threads.add(task.name)
    return threads


def num_started_since(before, expected):
    """How many have started; waits a while for as many as expected, since a thread takes its name when it first runs."""
    end = time.monotonic() + 10.0
    while len(network_threads() - before) < expected and time.monotonic() < end:
        time.sleep(0.01)
    return len(network_threads() - before)


def test_groups_made_within_have_one_thread_and_those_after_their_own():
    before, usual = network_threads(), distributed_c10d.ProcessGroupGloo
    store = distributed.HashStore()
    with one_gloo_device():
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        groups = [distributed.new_group([0], backend="gloo", timeout=timedelta(seconds=7)) for _ in range(5)]
    try:
        assert num_started_since(before, 1) == 1
        assert distributed_c10d.ProcessGroupGloo is usual
        assert all(isinstance(group._get_backend(torch.device("cpu")), usual) for group in groups)
        value = torch.tensor([1.5, -2.0])
        for group in [None, *groups]:
            distributed.all_reduce(value, group=group)
            distributed.broadcast(value, 0, group=group)
            distributed.barrier(group=group)
        assert value.tolist() == [1.5, -2.0]
        distributed.new_group([0], backend="gloo")
        assert num_started_since(before, 2) == 2
    finally:
        distributed.destroy_process_group()
