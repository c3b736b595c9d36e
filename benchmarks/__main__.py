"""All benchmarks that fit this machine, those on its GPU too, one after another, each in a process of its own; then the page.

python -m benchmarks                     # all
python -m benchmarks wire overlap        # some
python -m benchmarks wire --repeats 1    # options after the names go to each of them
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec

from benchmarks import tables
from benchmarks.arguments import CORES
from benchmarks.gpu_setup import on_gpu
from benchmarks.running import run_all, start
from rlsys.placement.machine import this_machine

RIVAL = "trl"
AGAINST_RIVAL = ("learner", "round", "gpu_learner", "gpu_round")
NAMES = (*tables.NAMES, *tables.ON_GPU)
WITH_VLLM_ON_CPU = ("rollout", "critic", "weight_sync", "round", "overlap", "startup")
"""An environment whose torch sees a GPU has the vLLM for GPUs instead."""
ON_SEVERAL_CORES = ("learner", "weight_sync", "round", "overlap")
"""Whose two sides, or ends, have cores of their own or threads for all of them."""


def main(words: Sequence[str], *, run: Callable[[str, Sequence[str]], int] | None = None) -> int:
    """Run benchmarks by name.

    Args:
        words: names, then options for each of them; no name means all.
        run: starts one and returns its exit status; another is for tests.

    Returns:
        0, or 1 if one failed; 2 if a name is not known.
    """
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    names, options = list(words[:at]) or _fitting(), words[at:]
    unknown = [name for name in names if name not in NAMES]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(NAMES)}", file=sys.stderr)
        return 2
    failed = run_all(names, options, run=run or start)
    tables.main()
    return 1 if failed else 0


def _fitting() -> list[str]:
    """All that fit this machine; says which do not, and why."""
    num_cores, has_gpu = int(this_machine().num_cpus), on_gpu()
    reasons = {name: unfit(name, num_cores=num_cores, has_gpu=has_gpu) for name in NAMES}
    for name, reason in reasons.items():
        if reason:
            print(f"== {name}: left out: {reason}")
    return [name for name, reason in reasons.items() if not reason]


def unfit(name: str, *, num_cores: int, has_gpu: bool, has_rival: bool | None = None) -> str:
    """Why a benchmark cannot be run here; empty if it can.

    Args:
        has_gpu: whether torch sees one.
        has_rival: whether TRL is installed; looked up if `None`.
    """
    if name in tables.ON_GPU and not has_gpu:
        return "torch sees no GPU"
    if name in WITH_VLLM_ON_CPU and has_gpu:
        return "vLLM here is the one for GPUs"
    if name in AGAINST_RIVAL and not (find_spec(RIVAL) if has_rival is None else has_rival):
        return f"{RIVAL} is not installed"
    if name in ON_SEVERAL_CORES and num_cores < CORES:
        return f"it takes {CORES} cores, there is {num_cores}"
    return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
