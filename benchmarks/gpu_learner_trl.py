"""TRL's side of the learner's measurement on a GPU: its DPOTrainer, with the activations and batch that are fastest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from benchmarks.gpu_setup import on_gpu, synchronized
from benchmarks.learner_sides import Job
from benchmarks.learner_trl import dataset, dpo_config
from benchmarks.processes import ANSWER, END
from benchmarks.trl_turns import Tuning, forget_compiled


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a learner is run, TRL's or ours."""

    recompute: bool
    """Activations are not kept for the backward pass."""
    size: int
    """Pairs per forward pass."""

    def __str__(self) -> str:
        return f"activations {'recomputed' if self.recompute else 'kept'}, {self.size} a pass"


TRIED = tuple(Setting(recompute=r, size=size) for r, size in ((False, 1), (True, 1), (True, 2), (True, 4)))
"""Settings of TRL's."""


def serve_trl(pipe: Any, job: Job) -> None:
    """Seconds of every turn with the fastest of the settings, what TRL says of its first step, and what was tried."""
    work, pairs = job.work, job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)

    def trial(setting: Setting) -> list[float]:
        seconds, _ = _train(job, pairs, setting, num_turns=2)
        return [work.pairs_per_turn / seconds[-1]]

    tuning = Tuning(trial)
    for setting in TRIED if on_gpu() else TRIED[:1]:
        tuning.add(setting)
    tuned = tuning.finish()
    seconds, first = ([], {}) if tuned.best is None else _train(job, pairs, tuned.best, num_turns=job.num_turns)
    pipe.send((ANSWER, {"seconds": seconds, "first": first, "tuned": tuned}))
    while pipe.recv() != END:
        pass


def _train(job: Job, pairs: Any, setting: Setting, *, num_turns: int) -> tuple[list[float], dict[str, float]]:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor, TrainerCallback
    from trl import DPOTrainer

    work, marks = job.work, []

    class Clock(TrainerCallback):
        def mark(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % work.steps == 0:
                marks.append(_now())

        on_train_begin = on_step_end = mark

    forget_compiled()
    config = dpo_config(
        job,
        size=setting.size,
        max_steps=num_turns * work.steps,
        gradient_checkpointing=setting.recompute,
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
