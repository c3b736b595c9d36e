"""A cluster of our own: what it starts, and that nothing of it stays."""

import psutil
import pytest

from rlsys.app.cluster import cluster


@pytest.fixture
def without_ray(monkeypatch):
    import ray

    ray.shutdown()  # of another module's tests
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return ray


def test_a_cluster_of_our_own_has_no_more_processes_than_it_needs_and_leaves_none(without_ray):
    before = set(psutil.Process().children(recursive=True))
    with cluster(None) as machine:
        started = [p for p in psutil.Process().children(recursive=True) if p not in before]
        assert machine.num_cpus == without_ray.cluster_resources()["CPU"]
        programs = [process.cmdline()[:2] for process in started]
        unneeded = ("dashboard.py", "monitor.py", "log_monitor.py")
        assert not [program for program in programs if program[-1].endswith(unneeded)]
        [raylet] = [process.cmdline() for process in started if process.name() == "raylet"]
        [agent] = [word for word in raylet if word.startswith("--dashboard_agent_command=")]
        assert "--minimal" in agent
    _, alive = psutil.wait_procs(started, timeout=10)
    assert not alive


def test_ray_is_as_it_was_afterwards(without_ray):
    from ray._private import node, utils

    before = [vars(node.Node)["start_api_server"], utils.get_dashboard_dependency_error]
    with cluster(None):
        assert [vars(node.Node)["start_api_server"], utils.get_dashboard_dependency_error] == before
