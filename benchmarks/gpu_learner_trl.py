"""TRL's side of the learner's measurement on a GPU: its DPOTrainer, with the activations and batch that are fastest."""

from __future__ import annotations

import gc
from itertools import pairwise
from typing import Any

from benchmarks.gpu_setup import on_gpu, synchronized
from benchmarks.learner_sides import Job
from benchmarks.learner_trl import dataset, dpo_config
from benchmarks.processes import ANSWER, END

TRIED_SIZES = ((False, 1), (True, 1), (True, 2), (True, 4))
"""Whether activations are recomputed, and pairs per forward pass."""


def serve_trl(pipe: Any, job: Job) -> None:
    """Seconds of every turn with the fastest of the settings, and what TRL says of its first step."""
    import torch

    work, pairs = job.work, job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    tried: dict[tuple[bool, int], float] = {}
    for recompute, size in TRIED_SIZES if on_gpu() else TRIED_SIZES[:1]:
        try:
            seconds, _ = _train(job, pairs, 2, recompute, size)
        except torch.OutOfMemoryError:
            gc.collect()
            torch.cuda.empty_cache()
            continue
        tried[recompute, size] = work.pairs_per_turn / seconds[-1]
    best = max(tried, key=tried.__getitem__, default=None)
    seconds, first = ([], {}) if best is None else _train(job, pairs, job.num_turns, *best)
    pipe.send((ANSWER, {"seconds": seconds, "first": first, "tried": tried}))
    while pipe.recv() != END:
        pass


def _train(job: Job, pairs: Any, num_turns: int, recompute: bool, size: int) -> tuple[list[float], dict[str, float]]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import DPOTrainer

    work, marks = job.work, []

    class Clock(TrainerCallback):
        def mark(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % work.steps == 0:
                marks.append(_now())

        on_train_begin = on_step_end = mark

    config = dpo_config(
        job,
        size=size,
        max_steps=num_turns * work.steps,
        gradient_checkpointing=recompute,
        use_cpu=not on_gpu(),
        bf16=work.precision == "bf16" and on_gpu(),
        logging_first_step=True,
        logging_steps=num_turns * work.steps + 1,
    )
    trainer = DPOTrainer(
        model=AutoModelForImageTextToText.from_pretrained(job.checkpoint, dtype=torch.float32),
        args=config,
        train_dataset=dataset(pairs),
        processing_class=AutoProcessor.from_pretrained(job.checkpoint),
    )
    trainer.add_callback(Clock())
    trainer.train()
    first = {name: float(trainer.state.log_history[0][name]) for name in ("loss", "grad_norm")}
    return [after - before for before, after in pairwise(marks)], first


def _now() -> float:
    import time

    synchronized(lambda: None)
    return time.perf_counter()
