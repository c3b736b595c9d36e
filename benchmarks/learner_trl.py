"""TRL's side of the learner's measurement: its DPOTrainer, at the setting with which it is fastest."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from benchmarks import device
from benchmarks.learner_ours import (
    BETA,
    CHECKED_LR,
    CHECKED_STEPS,
    TIMED_LR,
    WARMUP,
    Job,
    Trace,
    arrays,
    peak_bytes,
    reset_peak,
)
from benchmarks.learner_work import Work, as_text
from benchmarks.processes import ANSWER
from benchmarks.trl import Ask, Tuning, between_turns, dataset, forget_compiled, options, serve, turns_of
from rlsys.records import PreferencePair

TRIED_TURNS = 2
"""Counted turns of a setting's trial."""
PREFETCHED = 2
"""Batches that a loader process makes ahead: torch's default."""
MOST_TURNS = 1000
"""The trainer wants a number of steps; it is told to stop before."""


def serve_trl(pipe: Any, job: Job) -> None:
    """Says what trials of its settings have found, then answers `trace`, `turn` and `peak` as our side does."""
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as where nothing is set
    pairs = job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    best, told = best_setting(job, pairs)
    pipe.send((ANSWER, told))
    question = pipe.recv()
    while question == "trace":
        pipe.send((ANSWER, _trace(job, pairs, best)))
        question = pipe.recv()
    serve(pipe, partial(train, job, pairs, best), question)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How TRL is started."""

    size: int
    """Pairs per forward pass; the rest of a step's are accumulated."""
    workers: int = 0
    """Loader processes."""
    compiled: bool = False
    """With `torch_compile`, whose minutes of compilation are not counted."""

    def __str__(self) -> str:
        return f"{self.size} a pass, {self.workers} workers" + (", compiled" if self.compiled else "")


def best_setting(job: Job, pairs: Sequence[PreferencePair]) -> tuple[Setting, str]:
    """The setting with which TRL is fastest, by the median of its turns, the fastest two in two trials. A single setting is
    not tried. Loader processes and compilation are tried on a CPU alone.
    """
    settings = [Setting(size=size) for size in job.work.tried_sizes]
    if len(settings) == 1:
        return settings[0], str(settings[0])

    def trial(setting: Setting) -> list[float]:
        warmup = _warmup(job.work, setting)
        seconds = turns_of(partial(train, job, pairs, setting), warmup + TRIED_TURNS)[warmup:]
        return [job.work.pairs_per_turn / one for one in seconds]

    tuning = Tuning(trial)
    for setting in settings:
        tuning.add(setting)
    if not device.on_gpu():
        tuning.add(replace(tuning.best, workers=1))
        tuning.add(replace(tuning.best, compiled=True))
    return tuning.finish()


def _warmup(work: Work, setting: Setting) -> int:
    """Turns of a trial that do not count."""
    # While the first turn warms up, loader processes fill their queues: what is taken from there was made before, and
    # few turns would look faster than many. These turns take as much as the queues hold.
    return WARMUP + math.ceil(setting.workers * PREFETCHED * setting.size / work.pairs_per_turn)


def train(job: Job, pairs: Sequence[PreferencePair], setting: Setting, ask: Ask) -> None:
    """Run TRL's own loop, which waits in `ask` between turns."""
    trainer = _trainer(job, pairs, setting, max_steps=MOST_TURNS * job.work.steps)
    clock = Clock()
    trainer.add_callback(between_turns(job.work.steps, ask, begin=clock.begin, end=clock.end))
    trainer.train()


class Clock:
    """Seconds of a turn, or the most bytes that it took."""

    def begin(self, question: str) -> None:
        self._resident = reset_peak() if question == "peak" else None
        self._started = time.perf_counter()

    def end(self) -> float:
        took = time.perf_counter() - self._started
        return took if self._resident is None else peak_bytes() - self._resident


def _trainer(
    job: Job,
    pairs: Sequence[PreferencePair],
    setting: Setting,
    *,
    max_steps: int,
    lr: float = TIMED_LR,
    clip: float = 1.0,
) -> Any:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl import DPOConfig, DPOTrainer

    forget_compiled()
    # Images are at hand in memory: TRL has none to read and none to decompress.
    rows = [as_text(pair) for pair in pairs]
    model = AutoModelForImageTextToText.from_pretrained(job.checkpoint, dtype=torch.float32)
    if job.work.frozen_vision:
        model.model.visual.requires_grad_(False)
    config = DPOConfig(
        output_dir=str(job.checkpoint / "trl"),
        beta=BETA,
        per_device_train_batch_size=setting.size,
        gradient_accumulation_steps=job.work.batch // setting.size,
        max_length=None,
        max_steps=max_steps,
        learning_rate=lr,
        max_grad_norm=clip,
        remove_unused_columns=False,
        torch_compile=setting.compiled,
        dataloader_num_workers=setting.workers,
        **options(),
    )
    return DPOTrainer(
        model=model,
        args=config,
        train_dataset=dataset(len(pairs), rows.__getitem__),
        processing_class=AutoProcessor.from_pretrained(job.checkpoint),
    )


def _trace(job: Job, pairs: Sequence[PreferencePair], setting: Setting) -> Trace:
    """With the setting that is timed."""
    from transformers import TrainerCallback

    steps = min(CHECKED_STEPS, len(pairs) // job.work.batch)
    trainer = _trainer(job, pairs, setting, max_steps=steps, lr=CHECKED_LR, clip=0.0)
    gradients, losses = {}, []
    compute = trainer.compute_loss

    def watched(*arguments: Any, **options: Any) -> Any:
        loss = compute(*arguments, **options)
        losses.append(float(loss))
        return loss

    class Watching(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not gradients:
                gradients.update(arrays(trainer.model, lambda parameter: parameter.grad))

    trainer.compute_loss = watched
    trainer.add_callback(Watching())
    before = arrays(trainer.model, lambda parameter: parameter)
    trainer.train()
    passes = job.work.batch // setting.size
    losses = [statistics.mean(losses[first : first + passes]) for first in range(0, len(losses), passes)]
    way = arrays(trainer.model, lambda parameter: parameter, before)
    return Trace(losses=losses, gradients=gradients, moved=way)
