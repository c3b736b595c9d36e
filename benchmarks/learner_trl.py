"""TRL's side of the learner's measurement: its DPOTrainer, at the setting with which it is fastest."""

from __future__ import annotations

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.learner_sides import (
    BETA,
    CHECKED_LR,
    CHECKED_STEPS,
    TIMED_LR,
    WARMUP,
    Job,
    Trace,
    arrays,
    moved,
    peak_bytes,
    reset_peak,
)
from benchmarks.learner_work import Work, as_text
from benchmarks.processes import ANSWER, END
from benchmarks.trl_turns import OPTIONS, Tuned, Tuning, between_turns, forget_compiled
from rlsys.records import PreferencePair

TRIED_TURNS = 3
"""Counted turns of a setting's trial."""
PREFETCHED = 2
"""Batches that a loader process makes ahead: torch's default."""
MOST_TURNS = 1000
"""The trainer wants a number of steps; it is told to stop before."""


def serve_trl(pipe: Any, job: Job) -> None:
    """Says what trials of its settings have found, then answers `trace`, `turn` and `peak` as our side does."""
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as where nothing is set
    pairs = job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    tuned = best_setting(job, pairs)
    pipe.send((ANSWER, tuned))
    question = pipe.recv()
    while question == "trace":
        pipe.send((ANSWER, _trace(job, pairs, tuned.best)))
        question = pipe.recv()

    def ask(result: float | None) -> str:
        nonlocal question
        if result is None:
            return question
        pipe.send((ANSWER, result))
        question = pipe.recv()
        return question

    if question != END:
        train(job, pairs, ask, tuned.best)


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


def best_setting(job: Job, pairs: Sequence[PreferencePair]) -> Tuned:
    """That with which TRL is fastest, by the median of its turns, the fastest two in two trials; pairs per second of
    each that was tried. Where there is one, it is not tried.
    """
    sizes = [size for size in job.work.tried_sizes if job.work.batch % size == 0]
    if len(sizes) == 1:
        return Tuned(best=Setting(size=sizes[0]))

    def trial(setting: Setting) -> list[float]:
        warmup, seconds = _warmup(job.work, setting), []

        def ask(result: float | None) -> str:
            seconds.extend([] if result is None else [result])
            return "turn" if len(seconds) < warmup + TRIED_TURNS else END

        train(job, pairs, ask, setting)
        return [job.work.pairs_per_turn / one for one in seconds[warmup:]]

    tuning = Tuning(trial)
    for size in sizes:
        tuning.add(Setting(size=size))
    tuning.add(replace(tuning.best, workers=1))
    tuning.add(replace(tuning.best, compiled=True))
    return tuning.finish()


def _warmup(work: Work, setting: Setting) -> int:
    """Turns of a trial that do not count."""
    # While the first turn warms up, loader processes fill their queues: what is taken from there was made before, and
    # few turns would look faster than many. These turns take as much as the queues hold.
    return WARMUP + math.ceil(setting.workers * PREFETCHED * setting.size / work.pairs_per_turn)


def train(job: Job, pairs: Sequence[PreferencePair], ask: Callable[[float | None], str], setting: Setting) -> None:
    """Run TRL's own loop; between turns it waits in `ask`, which gets the last turn's result, until that says `END`."""
    trainer = _trainer(job, pairs, setting, max_steps=MOST_TURNS * job.work.steps)
    clock = Clock()
    trainer.add_callback(between_turns(job.work.steps, ask, begin=clock.begin, end=clock.end))
    trainer.train()


class Clock:
    """Seconds of a turn, or the most bytes that it took."""

    def begin(self, question: str) -> None:
        """A turn begins."""
        self._resident = reset_peak() if question == "peak" else None
        self._started = time.perf_counter()

    def end(self) -> float:
        """What was asked for."""
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
    from trl import DPOTrainer

    forget_compiled()
    processor = AutoProcessor.from_pretrained(job.checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(job.checkpoint, dtype=torch.float32)
    if job.work.frozen_vision:
        model.model.visual.requires_grad_(False)
    shows = job.work.picture is not None
    config = dpo_config(
        job,
        size=setting.size,
        max_steps=max_steps,
        learning_rate=lr,
        torch_compile=setting.compiled,
        dataloader_num_workers=setting.workers,
        dataloader_persistent_workers=False,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=not shows,  # refused with pictures
        max_grad_norm=clip,
        use_cpu=True,
        bf16=job.work.precision == "bf16",
        logging_strategy="no",
    )
    return DPOTrainer(
        model=model,
        args=config,
        train_dataset=dataset(pairs, shows=shows),
        processing_class=processor if shows else processor.tokenizer,
    )


def dpo_config(job: Job, *, size: int, max_steps: int, learning_rate: float = TIMED_LR, **more: Any) -> Any:
    """TRL's configuration as far as it is the same everywhere.

    Args:
        size: pairs per forward pass.
        max_steps: optimizer steps.
        more: of `trl.DPOConfig`.
    """
    from trl import DPOConfig

    return DPOConfig(
        output_dir=str(job.checkpoint / "trl"),
        beta=BETA,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=job.work.batch // size,
        max_length=None,
        max_steps=max_steps,
        learning_rate=learning_rate,
        remove_unused_columns=False,
        **OPTIONS,
        **more,
    )


def dataset(pairs: Sequence[PreferencePair], *, shows: bool = True) -> Any:
    """Pictures are at hand in memory: TRL has none to read and none to decompress."""
    from datasets import Dataset
    from PIL import Image as PillowImage

    rows = [as_text(pair) for pair in pairs]
    if not shows:
        return Dataset.from_list(rows)
    pictures = [[PillowImage.fromarray(image.pixels) for image in pair.prompt.images] for pair in pairs]

    def look_up(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        numbers = batch["number"]
        columns = {name: [rows[number][name] for number in numbers] for name in rows[0]}
        return {"images": [list(pictures[number]) for number in numbers], **columns}

    return Dataset.from_dict({"number": list(range(len(pairs)))}).with_transform(look_up)


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
    return Trace(losses=losses, gradients=gradients, moved=moved(before, trainer.model, lambda parameter: parameter))
