"""Tokens per second through the rollout actor on one GPU, against vLLM alone with the same requests.

    python -m benchmarks.gpu_rollout

As `benchmarks.rollout`, with policies of the shape of Qwen2.5-VL and random weights in bfloat16. Both engines stay on
the GPU with 30 % of its memory each; whoever waits does nothing.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import rollout
from benchmarks.gpu_setup import QWEN_3B, QWEN_7B, TINY, engine, make_model, on_gpu, options, place
from benchmarks.harness import write
from benchmarks.tables import ON_GPU
from rlsys.app.cluster import cluster
from rlsys.records import RoundPlan
from rlsys.schedules.phases import Phase

SHAPES = {"Qwen2.5-VL-3B": QWEN_3B, "Qwen2.5-VL-7B": QWEN_7B}
TINY_SHAPES = {"tiny": TINY}
TARGET = ON_GPU["gpu_rollout"].target
TOKENS = 512
LEAST_SAME = 0.0
"""In bfloat16, beside other requests, some of so many tokens are others; how many answers are the same is said, and their
number of tokens must be (`rollout.MOST_OTHER_TOKENS`).
"""


@dataclass(frozen=True, kw_only=True)
class Case(rollout.Case):
    """A policy on the GPU."""

    max_tokens: int

    def engine(self) -> Any:
        """Of both sides."""
        return engine(max_model_len=1024, enforce_eager=self.eager)

    def plan(self, turn: int) -> RoundPlan:
        """What a round would ask."""
        phase = Phase(num_prompts=self.num_prompts, num_candidates=rollout.CANDIDATES, max_tokens=self.max_tokens)
        return phase.plan(0, turn)


def ours(case: Case) -> rollout.Ours:
    """A rollout stage whose actor is on the GPU."""
    return rollout.Ours(case, place(0.4))


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    given = options(__doc__, words, cases=lambda tiny: TINY_SHAPES if tiny else SHAPES)
    if given is None:
        return 0
    shapes = TINY_SHAPES if given.tiny else SHAPES
    num_prompts, tokens = (4, 8) if given.tiny else (128, TOKENS)
    rows = []
    for name, shape in shapes.items():
        if name not in given.cases:
            continue
        with tempfile.TemporaryDirectory(prefix="rlsys-gpu-") as scratch, cluster(None):
            folder = make_model(Path(scratch), shape)
            case = Case(name=name, folder=str(folder), num_prompts=num_prompts, eager=given.tiny, max_tokens=tokens)
            rows.append(rollout.measure(case, given.repeats, ours, TARGET if on_gpu() else None, LEAST_SAME))
    write("gpu_rollout", "Response on one GPU: tokens per second, end to end", rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
