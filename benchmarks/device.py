"""What the programs run on: two cores of a machine, or its one GPU.

`--device cpu` hides GPUs from the program and from all that it starts. A program therefore asks torch whether there is a
GPU, and the same cases run on both devices.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlsys.placement import Placement
from rlsys.placement.machine import this_machine

CORES = 2
"""Both sides of every comparison on a CPU have so many cores, whatever the machine has; the targets are for these."""
ENVIRONMENT = {"VLLM_USE_FLASHINFER_SAMPLER": "0", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
"""Environment of benchmark programs on a GPU. vLLM's own sampler is switched off, because it would import a library that is not
installed on every machine.
"""
FACTS = Path("/proc/cpuinfo")


def confine() -> None:
    """Keep this process, and all that it starts, on the first `CORES` of its cores and away from GPUs."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def on_gpu() -> bool:
    """Whether there is a CUDA device that this process may use."""
    import torch

    return torch.cuda.is_available()


def name() -> str:
    """The device in torch's words."""
    return "cuda" if on_gpu() else "cpu"


def processor(facts: Path = FACTS) -> str:
    """The name of the processor."""
    lines = facts.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def memory_gib() -> float:
    """Memory of this machine, used or free."""
    with open("/proc/meminfo") as lines:
        return int(next(line for line in lines if line.startswith("MemTotal")).split()[1]) / (1 << 20)


def precision() -> str:
    """The precision in which both learners train: `bf16` on a GPU, `fp32` on cores."""
    return "bf16" if on_gpu() else "fp32"


def cluster_words() -> tuple[str, ...]:
    """The configuration of a run on this device."""
    return ("cluster=one_gpu", "rollout.engine.enforce_eager=false") if on_gpu() else ()


def whole_machine() -> Placement:
    """All cores of this machine, or what a quota leaves of them, with as many threads."""
    machine = this_machine()
    return Placement(num_cpus=machine.num_cpus, cores=machine.cores, num_threads=max(1, int(machine.num_cpus)))


def place() -> Placement:
    """An actor that has a share of the GPU; without a GPU, the whole machine."""
    return Placement(num_cpus=2, num_gpus=0.4, num_threads=4) if on_gpu() else whole_machine()


def engine(**given: Any) -> Any:
    """Options of vLLM. On a GPU: bfloat16, and a cache sized for one of several processes there."""
    from actors.engines.vllm import Vllm

    usual = {"dtype": "bfloat16", "gpu_memory_utilization": 0.3} if on_gpu() else {}
    return Vllm(**{**usual, **given})


def synchronized(work: Callable[[], Any]) -> float:
    """Seconds of some work and of all that it has started on the GPU."""
    import torch

    wait = torch.cuda.synchronize if on_gpu() else lambda: None
    wait()
    started = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - started


def copy_seconds(num_bytes: int) -> float:
    """Seconds of a copy of so many bytes in the device's memory, after one that is not counted."""
    import torch

    one, two = (torch.zeros(num_bytes, dtype=torch.uint8, device=name()) for _ in range(2))
    two.copy_(one)
    return synchronized(lambda: two.copy_(one))
