import os
import subprocess
import sys
from dataclasses import replace

import pytest

from rlsys.errors import ResourceError
from rlsys.placement import Role, place, shortages
from rlsys.placement.machine import Limits, Machine, container_limits
from rlsys.placement.packing import Need, Node, equal_share, without_room

TWO_CORES = Machine(num_cpus=2, num_gpus=0, memory_gib=20.0, cores=(0, 1))


def role(name, num_actors=1, *, cores=0.0, gpus=0.0, memory_gib=1.0, gpu_memory_gib=0.0):
    return Role(
        name=name,
        num_actors=num_actors,
        cores=cores,
        gpus=gpus,
        memory_gib=memory_gib,
        gpu_memory_gib=gpu_memory_gib,
    )


def test_engines_and_learner_get_a_half_each():
    placed = place([role("rollout"), role("critic"), role("learner")], TWO_CORES)
    assert [p.cores for p in placed["rollout"]] == [(0,)]
    assert [p.cores for p in placed["critic"]] == [(0,)]
    assert [p.cores for p in placed["learner"]] == [(1,)]
    assert sum(p.num_cpus for ps in placed.values() for p in ps) <= 2
    assert placed["learner"][0].environment["OMP_NUM_THREADS"] == "1"


def test_a_learner_alone_gets_everything():
    (only,) = place([role("learner")], TWO_CORES)["learner"]
    assert (only.cores, only.num_threads, only.num_cpus) == ((0, 1), 2, 2.0)


def test_more_actors_than_cores_share():
    placed = place([role("rollout", 2), role("critic"), role("learner", 2)], TWO_CORES)
    assert [p.cores for p in placed["rollout"]] == [(0,), (0,)]
    assert [p.cores for p in placed["learner"]] == [(1,), (1,)]
    assert placed["rollout"][0].num_cpus == 0.4


def test_eight_cores_are_dealt_out_once():
    machine = Machine(num_cpus=8, num_gpus=0, memory_gib=20.0, cores=tuple(range(8)))
    placed = place([role("rollout", 2), role("critic"), role("learner", 2)], machine)
    used = [core for ps in placed.values() for p in ps for core in p.cores]
    assert sorted(used) == list(range(8))


def test_fixed_cores_are_taken_in_order_and_not_twice():
    machine = Machine(num_cpus=4, num_gpus=0, memory_gib=20.0, cores=(0, 1, 2, 3))
    placed = place([role("rollout", 2, cores=1), role("learner", cores=2)], machine)
    assert [p.cores for p in placed["rollout"]] == [(0,), (1,)]
    assert [p.cores for p in placed["learner"]] == [(2, 3)]


def test_what_does_not_fit_is_said_with_numbers():
    with pytest.raises(ResourceError, match=r"cores: rollout 3 x 1 = 3 asked for, 2 there"):
        place([role("rollout", 3, cores=1)], TWO_CORES)
    assert shortages([role("learner", 2, gpus=1)], TWO_CORES) == ["GPUs: learner 2 x 1 = 2 asked for, 0 there"]
    assert shortages([role("learner", 2, memory_gib=15)], TWO_CORES) == [
        "host memory: learner 2 x 15 = 30.0 GiB needed, 20.0 GiB free"
    ]


def test_fixed_cores_that_leave_none_for_the_rest():
    with pytest.raises(ResourceError, match="leaves none for learner"):
        place([role("rollout", 2, cores=1), role("learner")], TWO_CORES)


def test_shared_gpu_memory_is_added_up():
    machine = Machine(num_cpus=8, num_gpus=1, memory_gib=64, gpu_memory_gib=80)
    sharing = [role("rollout", gpus=0.5, gpu_memory_gib=60), role("learner", gpus=0.5, gpu_memory_gib=60)]
    assert shortages(sharing, machine) == ["GPU memory: roles that share 1 GPUs need about 120.0 GiB, 80.0 GiB there"]
    two = replace(machine, num_gpus=2)
    assert shortages(sharing, two) == []


def test_a_gpu_is_not_shared_by_more_than_it_has():
    machine = Machine(num_cpus=8, num_gpus=2, memory_gib=64)
    (said,) = shortages([role("rollout", 3, gpus=0.6)], machine)
    assert said == (
        "machines: 1 x rollout (0 cores, 0.6 GPUs of 0.0 GiB, 1.0 GiB of host memory) find no room beside the others; "
        "there are machines of 8 cores and 2 GPUs"
    )


def test_an_actor_must_fit_one_machine():
    nodes = (Node(num_cpus=16, num_gpus=4), Node(num_cpus=16, num_gpus=4))
    machine = Machine(num_cpus=32, num_gpus=8, memory_gib=64, nodes=nodes)
    (said,) = shortages([role("rollout", cores=8, gpus=8)], machine)
    assert said.startswith("machines: 1 x rollout (8 cores, 8 GPUs of")
    assert said.endswith("there are machines of 16 cores and 4 GPUs, 16 cores and 4 GPUs")
    assert shortages([role("rollout", 2, cores=8, gpus=2), role("learner", 4, cores=4, gpus=1)], machine) == []
    assert shortages([role("rollout", 3, cores=9)], machine) == [
        "machines: 1 x rollout (9 cores, 0 GPUs of 0.0 GiB, 1.0 GiB of host memory) find no room beside the others; "
        "there are machines of 16 cores and 4 GPUs, 16 cores and 4 GPUs"
    ]


def test_gpu_memory_counts_for_each_gpu():
    needs = [Need(name="a", cpus=1, gpus=0.5, gpu_memory_gib=50), Need(name="b", cpus=1, gpus=0.5, gpu_memory_gib=50)]
    assert without_room(needs, [Node(num_cpus=4, num_gpus=1)], gpu_memory_gib=80) == [needs[1]]
    assert without_room(needs, [Node(num_cpus=4, num_gpus=2)], gpu_memory_gib=80) == []
    assert without_room(needs, [Node(num_cpus=4, num_gpus=1)]) == []


def test_the_limits_of_a_container_are_read(tmp_path):
    assert container_limits(tmp_path) == Limits()
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("4294967296\n")
    (tmp_path / "memory.current").write_text("3221225472\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 1073741824\n")
    assert container_limits(tmp_path) == Limits(num_cpus=1.5, memory_gib=2.0)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert container_limits(tmp_path) == Limits()


def write_files(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_the_limits_of_a_job_stand_in_its_own_group_or_above_it(tmp_path):
    """As of a workload manager, which gives each job a group below the root."""
    (tmp_path / "own").write_text("0::/system/job_1/step\n")
    root = tmp_path / "cgroup"
    write_files(root / "system/job_1", cpu__max="400000 100000", memory__max=str(4 << 30), memory__current="0")
    write_files(root / "system/job_1/step", cpu__max="max 100000", memory__max="max", memory__current="0")
    assert container_limits(root, tmp_path / "own") == Limits(num_cpus=4.0, memory_gib=4.0)
    write_files(root / "system", cpu__max="200000 100000", memory__max=str(8 << 30), memory__current="0")
    assert container_limits(root, tmp_path / "own") == Limits(num_cpus=2.0, memory_gib=4.0)


def test_limits_of_version_1_are_read(tmp_path):
    (tmp_path / "own").write_text("5:memory:/box\n4:cpu,cpuacct:/docker/0123\n")  # the latter is a path of the host
    root = tmp_path / "cgroup"
    write_files(root / "cpu", cpu__cfs_quota_us="150000", cpu__cfs_period_us="100000")
    write_files(
        root / "memory/box",
        memory__limit_in_bytes=str(3 << 30),
        memory__usage_in_bytes=str(2 << 30),
        memory__stat=f"cache 5\ntotal_inactive_file {1 << 30}\n",
    )
    write_files(root / "memory", memory__limit_in_bytes=str((1 << 63) - 4096), memory__usage_in_bytes="0")
    assert container_limits(root, tmp_path / "own") == Limits(num_cpus=1.5, memory_gib=2.0)
    write_files(root / "cpu", cpu__cfs_quota_us="-1")
    assert container_limits(root, tmp_path / "own").num_cpus is None


@pytest.mark.parametrize(
    ("nodes", "roles", "expected"),
    [
        # 12 cores of one machine are taken: what is left there is less than a third of what is left in all.
        ([(16, 0), (16, 0)], [("rollout", 1, 12.0, 0), ("critic", 1, 0.0, 0), ("learner", 1, 0.0, 0)], 8.0),
        # GPUs are on the smaller machine.
        ([(16, 4), (112, 0)], [("rollout", 1, 0.0, 1), ("critic", 1, 0.0, 1), ("learner", 2, 0.0, 1)], 4.0),
        ([(2, 4), (112, 0)], [("rollout", 1, 0.0, 1), ("critic", 1, 0.0, 1), ("learner", 2, 0.0, 1)], 0.5),
    ],
)
def test_equal_shares_of_a_cluster_find_room_on_its_machines(nodes, roles, expected):
    machine = Machine(
        num_cpus=sum(cpus for cpus, _ in nodes),
        num_gpus=sum(gpus for _, gpus in nodes),
        memory_gib=256,
        nodes=tuple(Node(num_cpus=cpus, num_gpus=gpus, memory_gib=128) for cpus, gpus in nodes),
    )
    asked = [role(name, count, cores=cores, gpus=gpus) for name, count, cores, gpus in roles]
    placed = place(asked, machine)
    assert {actor.num_cpus for one in asked if not one.cores for actor in placed[one.name]} == {expected}
    needs = [
        Need(name=name, cpus=actor.num_cpus, gpus=actor.num_gpus) for name, actors in placed.items() for actor in actors
    ]
    assert without_room(needs, machine.nodes) == []


def test_an_actor_without_a_gpu_sees_none():
    machine = Machine(num_cpus=8, num_gpus=1, memory_gib=64, cores=tuple(range(8)))
    placed = place([role("rollout", gpus=1), role("learner")], machine)
    assert [placed[name][0].environment.get("CUDA_VISIBLE_DEVICES") for name in placed] == [None, ""]
    assert "CUDA_VISIBLE_DEVICES" not in place([role("learner")], TWO_CORES)["learner"][0].environment


def test_gpu_actors_are_not_pinned():
    machine = Machine(num_cpus=8, num_gpus=2, memory_gib=64, cores=tuple(range(8)))
    placed = place([role("rollout", cores=2, gpus=1), role("learner", cores=2, gpus=1)], machine)
    assert placed["rollout"][0].cores == () and placed["rollout"][0].num_gpus == 1
    assert placed["rollout"][0].num_cpus == 2


def test_who_shares_cores_starts_on_those_that_the_first_leaves_free():
    placed = place([role("rollout"), role("critic"), role("learner")], TWO_CORES)
    assert [placed[name][0].start_cores for name in ("rollout", "critic", "learner")] == [(), (1,), ()]
    alone = Machine(num_cpus=1, num_gpus=0, memory_gib=20.0, cores=(3,))
    placed = place([role("rollout"), role("critic"), role("learner")], alone)
    assert [placed[name][0].start_cores for name in ("rollout", "critic", "learner")] == [(), (), ()]


def test_who_comes_first_stands_back_on_shared_cores():
    def niceness(*roles, machine):
        return {name: [actor.niceness for actor in actors] for name, actors in place(roles, machine).items()}

    all_roles = [role("rollout"), role("critic"), role("learner")]
    assert niceness(*all_roles, machine=TWO_CORES) == {"rollout": [10], "critic": [0], "learner": [0]}
    alone = Machine(num_cpus=1, num_gpus=0, memory_gib=20.0, cores=(3,))
    assert niceness(*all_roles, machine=alone) == {"rollout": [19], "critic": [10], "learner": [0]}
    roomy = Machine(num_cpus=6, num_gpus=0, memory_gib=20.0, cores=tuple(range(6)))
    assert niceness(*all_roles, machine=roomy) == {"rollout": [0], "critic": [0], "learner": [0]}


def test_a_process_settles_on_its_cores_with_all_its_threads():
    cores = sorted(os.sched_getaffinity(0))
    program = (
        "import os, threading\n"
        "from rlsys.placement import Placement\n"
        f"first, last = {cores[0]}, {cores[-1]}\n"
        "placement = Placement(cores=(first,), start_cores=(last,), niceness=10, env={'RLSYS_TEST': 'yes'})\n"
        "placement.apply()\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "where = lambda: {tuple(os.sched_getaffinity(int(thread))) for thread in os.listdir('/proc/self/task')}\n"
        "before = where()\n"
        "placement.settle()\n"
        "ranks = {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir('/proc/self/task')}\n"
        "print(before == {(last,)}, where() == {(first,)}, os.environ['OMP_NUM_THREADS'], os.environ['RLSYS_TEST'], ranks)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "1", "yes", "{10}"]


def test_an_actor_that_takes_what_there_is_takes_no_more_than_a_machine_has():
    nodes = (Node(num_cpus=3), Node(num_cpus=5))
    cluster = Machine(num_cpus=8, num_gpus=0, memory_gib=64, nodes=nodes)
    assert [placed.num_cpus for placed in place([role("learner")], cluster)["learner"]] == [5.0]
    assert [placed.num_cpus for placed in place([role("learner", 4)], cluster)["learner"]] == [1.0] * 4
    assert [placed.num_cpus for placed in place([role("learner", 3)], cluster)["learner"]] == [2.0] * 3
    assert equal_share(nodes, 4) == pytest.approx(5 / 3)
