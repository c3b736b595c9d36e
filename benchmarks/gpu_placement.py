"""A round's stages on one GPU: engine and learner at once (colocated), against one after the other (alternating).

    python -m benchmarks.gpu_placement

The real loop with a policy of Qwen2.5-VL-3B's shape and random weights; engine and learner have processes and memory of
their own on the one GPU in both ways. Colocated is a round as it is run: later prompts are answered while the learner
trains on the first pairs. Alternating is the same work with all answers first, then all steps.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu_round import WORDS
from benchmarks.gpu_setup import QWEN_3B, TINY, make_model, on_gpu, options, precision
from benchmarks.harness import Row, in_turn, table, write
from benchmarks.overlap import Rounds
from benchmarks.round_sides import Job, our_rounds

AFTER = ("sync", "checkpoint")
"""Stages that nothing runs beside, in either way."""
PAIRS = ("schedule.num_candidates=8", "examples=all_pairs", "examples.max_per_prompt=6")
CASES = {
    "3B, 128 prompts x 8 of 256 tokens": PAIRS,
    "3B, vision tower frozen": (*PAIRS, "learner.freeze=[visual]"),
}
TINY_CASES = {"tiny": PAIRS}


def measure(name: str, job: Job, repeats: int) -> Row:
    """One line of the table."""
    with our_rounds(job) as ours:
        rounds = Rounds(ours.parts)
        rounds.parts.weights.publish(1)  # connects, and proves that engine and learner begin with the same weights
        rounds.version = 1

        def alternating() -> float:
            rounds.alone()
            after = sum(rounds.reports[-1].seconds[stage] for stage in AFTER)
            return rounds.generation_s[-1] + rounds.training_s[-1] + after

        rounds.overlapped()  # `alternating` takes the stages that come after from a round before it
        colocated, alternated, ratio = in_turn(rounds.overlapped, alternating, repeats=repeats)
    reports = rounds.reports[2:]
    stages = {
        f"colocated: {stage} s": statistics.median(report.seconds[stage] for report in reports)
        for stage in ("rollout", "learn", *AFTER)
    }
    return Row(
        case=name,
        ours=colocated,
        other=alternated,
        other_name="alternating",
        ratio=ratio,
        unit="s",
        checked=rounds.check(uncounted=2),
        note="Sync and checkpoint of the alternating rounds are taken from the colocated round before.",
        extra={
            **stages,
            "alternating: answers and rewards s": statistics.median(rounds.generation_s[1:]),
            "alternating: learn s": statistics.median(rounds.training_s[1:]),
        },
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    given = options(__doc__, words, cases=lambda tiny: TINY_CASES if tiny else CASES)
    if given is None:
        return 0
    rows: list[Row] = []
    size = {"num_prompts": 8, "max_tokens": 8, "batch": 8} if given.tiny else {"num_prompts": 128, "max_tokens": 256}
    with tempfile.TemporaryDirectory(prefix="rlsys-gpu-") as scratch:
        folder = make_model(Path(scratch), TINY if given.tiny else QWEN_3B)
        for name, more in (TINY_CASES if given.tiny else CASES).items():
            if name in given.cases:
                words_of = (*(WORDS if on_gpu() else ()), *more)
                rows.append(
                    measure(
                        name,
                        Job(folder=str(folder), words=words_of, precision=precision(), **size),
                        given.repeats,
                    )
                )
                print(table("measured:", rows[-1:]), flush=True)
    write("gpu_placement", "A round's stages on one GPU, at once and in turn", rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
