"""Whole online rounds on one GPU against TRL's OnlineDPOTrainer: pairs per second, two answers to a prompt.

    python -m benchmarks.gpu_round

As `benchmarks.round`, with a policy of random weights that has Qwen2-VL-2B's language model, in bfloat16 with float32
master weights on both sides. With pictures TRL answers with transformers' `generate`: with vLLM it would train without
seeing them. Without pictures it answers with vLLM in its own process. TRL is not tried compiled. One side runs after the
other, each with the whole GPU.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_setup import QWEN_2B, TINY, make_model, on_gpu, options, precision
from benchmarks.harness import Row, table, write
from benchmarks.round import NOTE, measure
from benchmarks.round_sides import Job
from benchmarks.tables import ON_GPU

TARGET = ON_GPU["gpu_round"].target
WORDS = ("cluster=one_gpu", "rollout.engine.enforce_eager=false")


def cases(folder: Path, *, tiny: bool) -> dict[str, Job]:
    """By name."""
    words = WORDS if on_gpu() else ()
    job = Job(
        folder=str(folder),
        num_prompts=128,
        max_tokens=256,
        tried=(16, 32, 64, 128),
        words=words,
        precision=precision(),
        precisions=(precision(),),
    )
    if tiny:
        job = replace(job, num_prompts=8, max_tokens=8, batch=4, tried=(4, 8))
    found = {"with pictures": job, "text alone": replace(job, shows=False, vllm=on_gpu(), tried=job.tried[-2:-1])}
    return {f"{'tiny' if tiny else '2.2 G parameters'}, {name}": job for name, job in found.items()}


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    given = options(__doc__, words, cases=lambda tiny: cases(Path(), tiny=tiny))
    if given is None:
        return 0
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="rlsys-gpu-") as scratch:
        folder = make_model(Path(scratch), TINY if given.tiny else QWEN_2B)
        for name, job in cases(folder, tiny=given.tiny).items():
            if name in given.cases:
                target = None if given.tiny else TARGET
                rows.append(measure(name, job, target, given.repeats, NOTE, together=False))
                print(table("measured:", rows[-1:]), flush=True)
    write("gpu_round", "Whole online rounds on one GPU", rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
