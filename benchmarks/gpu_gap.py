"""How far engine and learner are apart in bfloat16: log-probabilities of the same tokens, token by token.

    python -m benchmarks.gpu_gap

The engine samples answers and records their log-probabilities, the learner computes those of the same tokens with the
same weights. Percentiles of the differences tell what a run may ask of its proofs (`sync.tolerance`, the largest
difference of a token; `learner.reference_tolerance`, the mean over an answer). float32 is shown beside it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.gpu_setup import QWEN_3B, TINY, engine, make_model, on_gpu, options, place
from benchmarks.harness import Row, Spread, table, write
from benchmarks.models import scenes_models
from rlsys.app.cluster import cluster
from rlsys.records import Probe
from rlsys.schedules.phases import Phase
from rlsys.worlds.scenes.source import make_prompt

PERCENTILES = (50, 90, 99, 99.9, 100)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy in a precision."""

    name: str
    folder: str
    bf16: bool
    num_prompts: int = 64
    max_tokens: int = 64


def gaps(case: Case, repeats: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each repeat: differences of all tokens in nats, and the absolute mean difference of every answer."""
    from actors.stages import RolloutStage
    from learners.config import LearnerConfig
    from learners.group import LearnerGroup
    from rlsys.objectives.dpo import DPO

    rollouts = RolloutStage(
        engine=engine(dtype="bfloat16" if case.bf16 else "float32", max_model_len=512),
        current=lambda: (case.folder, 0),
        placements=[place(0.3)],
        seed=0,
    )
    try:
        config = LearnerConfig(precision="bf16" if case.bf16 else "fp32")
        learner = LearnerGroup(config, DPO(), case.folder, placements=[place(0.6)])
        try:
            return [_once(case, rollouts, learner, number) for number in range(repeats)]
        finally:
            learner.close()
    finally:
        rollouts.close()


def _once(case: Case, rollouts: object, learner: object, number: int) -> tuple[np.ndarray, np.ndarray]:
    plan = Phase(num_prompts=case.num_prompts, num_candidates=4, max_tokens=case.max_tokens).plan(0, number)
    start = number * case.num_prompts
    prompts = [make_prompt("online", index, "describe") for index in range(start, start + case.num_prompts)]
    probes, recorded = [], []
    for group in rollouts.stream(prompts, plan):
        for rollout in group.responses:
            probes.append(
                Probe(
                    prompt=group.prompt,
                    prompt_token_ids=tuple(group.prompt_token_ids.tolist()),
                    response_token_ids=tuple(rollout.token_ids.tolist()),
                )
            )
            recorded.append(rollout.logprobs)
    found = [ours - theirs for ours, theirs in zip(learner.logprobs(probes), recorded, strict=True)]
    return np.abs(np.concatenate(found)), np.array([float(np.abs(one).mean()) for one in found])


def measure(case: Case, repeats: int) -> Row:
    """One line of the table."""
    found = gaps(case, repeats)
    tokens, answers = (np.concatenate([one[part] for one in found]) for part in range(2))
    return Row(
        case=f"{case.name}, {'bfloat16' if case.bf16 else 'float32'}: 99th percentile of the tokens",
        ours=Spread.of([float(np.percentile(one, 99)) for one, _ in found]),
        unit="nats",
        checked=f"{len(tokens)} tokens of {len(answers)} answers",
        extra={
            **{f"token p{part:g}": float(np.percentile(tokens, part)) for part in PERCENTILES},
            **{f"answer's mean p{part:g}": float(np.percentile(answers, part)) for part in PERCENTILES},
        },
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    given = options(__doc__, words, cases=lambda tiny: ("scenes", "tiny" if tiny else "Qwen2.5-VL-3B"))
    if given is None:
        return 0
    rows = []
    with tempfile.TemporaryDirectory(prefix="rlsys-gpu-") as scratch, cluster(None):
        # The scenes world's policy may have to be trained first: `--tiny` has it only when it is asked for.
        names = [name for name in given.cases if name != "scenes" or not given.tiny or given.only]
        size = {"num_prompts": 8, "max_tokens": 16} if given.tiny and not given.only else {}
        for name in names:
            shape = TINY if given.tiny else QWEN_3B
            folder = scenes_models()[0] if name == "scenes" else make_model(Path(scratch), shape)
            for bf16 in (True, False):
                rows.append(measure(Case(name=name, folder=str(folder), bf16=bf16, **size), given.repeats))
                print(table("measured:", rows[-1:]), flush=True)
    title = "Log-probabilities of engine and learner on one GPU, absolute differences" if on_gpu() else "Differences"
    write("gpu_gap", title, rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
