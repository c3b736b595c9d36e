"""The two learners, each in a process of its own that does a turn when it is told to and sleeps otherwise."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import re
import socket
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.learner_work import Work, as_text, with_logprobs
from benchmarks.profiling import shares
from rlsys.records import PreferencePair

WARMUP = 1
"""Turns of a side that do not count."""
TRIED_TURNS = 3
"""Turns in which a setting of TRL's is tried; the fastest counts, so that a noisy moment does not choose a slow one."""
BETA = 0.1
MOST_TURNS = 1000
TIMED_LR = 1e-7
"""So small that recorded log-probabilities stay those of the weights over all turns, and are checked in each."""
CHECKED_LR = 2e-5
"""That of the scenes rounds."""
CHECKED_STEPS = 3
ALLOCATOR = (
    "TRL's process has the allocator's own settings; started with MALLOC_MMAP_MAX_=0 and "
    "MALLOC_TRIM_THRESHOLD_=2147483647 this program measures it with those of ours (`learners/allocator.py`)."
)
END = "end"
"""The question that ends a job."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a side is given."""

    work: Work
    checkpoint: Path
    num_turns: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a side did in its first steps, to be held against the other's."""

    losses: list[float]
    """Mean of each step's batch."""
    gradients: dict[str, Any]
    """Of the first step, by parameter."""
    moved: dict[str, Any]
    """How far the weights went in all steps."""

    def differences(self, other: Trace) -> dict[str, float]:
        """Largest absolute differences of losses and gradients; of the weights the root of the mean square, as a share of
        the way that they went: AdamW moves a weight whose gradient is almost nothing by a full step, either way.
        """
        for kind in ("gradients", "moved"):
            mine, others = getattr(self, kind), getattr(other, kind)
            if mine.keys() != others.keys():
                raise ValueError(f"{kind} of other parameters: {sorted(mine.keys() ^ others.keys())[:3]}")
        apart = sum(float(((way - other.moved[name]) ** 2).sum()) for name, way in self.moved.items())
        return {
            "loss": max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)),
            "gradients": max(float(abs(g - other.gradients[name]).max()) for name, g in self.gradients.items()),
            "largest gradient": max(float(abs(gradient).max()) for gradient in self.gradients.values()),
            "weights": (apart / sum(float((way**2).sum()) for way in self.moved.values())) ** 0.5,
        }


class JobSide:
    """A child process that takes up one job after another, and answers questions about it one at a time."""

    def __init__(self, serve: Callable[[Any, Job], None]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(serve, theirs))
        self._process.start()

    def ask(self, question: str) -> Any:
        """
        Raises:
            RuntimeError: the process failed; with its traceback.
        """
        return self._say(question)

    def begin(self, job: Job) -> Any:
        """Give the process a job; returns, when it is ready for questions, what it has to say of itself."""
        return self._say(job)

    def end(self) -> None:
        """The job is done."""
        self._say(END)

    def _say(self, message: Any) -> Any:
        self._pipe.send(message)
        kind, value = self._pipe.recv()
        if kind == "failure":
            raise RuntimeError(value)
        return value

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def _run(serve: Callable[[Any, Job], None], pipe: Any) -> None:
    threads = len(os.sched_getaffinity(0))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")
    warnings.filterwarnings("ignore")
    sys.argv = sys.argv[
        :1
    ]  # inductor puts what follows `--only` between quotes in its code: a case's apostrophe ends it
    import torch

    torch.set_num_threads(threads)
    try:
        while True:
            serve(pipe, pipe.recv())
            pipe.send(("answer", None))
    except BaseException:
        pipe.send(("failure", traceback.format_exc()))


@contextmanager
def sides() -> Iterator[tuple[JobSide, JobSide]]:
    """Our process and TRL's."""
    both = JobSide(serve_ours), JobSide(serve_trl)
    try:
        yield both
    finally:
        for side in both:
            side.close()


# Ours ------------------------------------------------------------------------------------------------------------


def serve_ours(pipe: Any, job: Job) -> None:
    """`trace`, `turn` (seconds), `peak` (bytes), `profile` (shares of a turn)."""
    from learners.plan import FitPlan
    from rlsys import wire

    pairs = job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    pairs = _recorded(_learner(job), pairs)
    learner = _learner(job)  # another one, that has seen no picture yet
    size = job.work.batch
    frames = [wire.encode_many(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    waiting = iter([frames[i : i + job.work.steps] for i in range(0, len(frames), job.work.steps)])

    def turn(lr: float = TIMED_LR) -> float:
        batches = next(waiting)
        started = time.perf_counter()
        learner.begin(FitPlan(lr=lr, beta=BETA))
        for number, frame in enumerate(batches):
            learner.step(frame, lr=lr, batch=number)
        return time.perf_counter() - started

    def trace() -> Trace:
        learner.reset()
        found = _trace_ours(learner, frames[:CHECKED_STEPS])
        learner.reset()
        return found

    def peak() -> float:
        resident = reset_peak()
        turn()
        return peak_bytes() - resident

    def profile() -> dict[str, float]:
        return shares(turn)

    answers = {"turn": turn, "trace": trace, "peak": peak, "profile": profile}
    pipe.send(("answer", None))
    while (question := pipe.recv()) != END:
        pipe.send(("answer", answers[question]()))


def reset_peak() -> int:
    """Bytes resident now; `peak_bytes` counts from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would not be counted when it is used again
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most bytes resident at any time since `reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1])


def _learner(job: Job) -> Any:
    from learners.config import LearnerConfig
    from learners.learner import LearnerRank
    from learners.rendezvous import Rendezvous
    from rlsys.objectives.dpo import DPO

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = LearnerConfig(
        batch_size=job.work.batch,
        freeze=["visual"] if job.work.frozen_vision else [],
        precision=job.work.precision,
    )
    meeting = Rendezvous(rank=0, world_size=1, address="127.0.0.1", port=port)
    return LearnerRank(config, DPO(beta=BETA), str(job.checkpoint), meeting)


def _recorded(learner: Any, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs as a round would hand them on: with the log-probabilities of the weights that sampled them."""
    from rlsys import wire
    from rlsys.records import Probe

    probes = [
        Probe(
            prompt=pair.prompt,
            prompt_token_ids=tuple(pair.prompt_token_ids.tolist()),
            response_token_ids=tuple(answer.token_ids.tolist()),
        )
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    recorded = []
    for start in range(0, len(probes), 64):
        recorded += learner.score(wire.encode_many(probes[start : start + 64]))
    return with_logprobs(pairs, recorded)


def _trace_ours(learner: Any, frames: Sequence[bytes]) -> Trace:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from learners.plan import FitPlan

    def master(parameter: Any) -> Any:
        """The float32 weight; the parameter itself where there is no other."""
        found = safe_get_full_fp32_param(parameter)
        return parameter if found is None else found

    engine, gradients, losses = learner._engine, {}, []
    step, clip = engine.step, engine._grad_clip

    def watched(lr: float) -> float:
        if not gradients:
            gradients.update(_arrays(engine.module, safe_get_full_grad))
        return step(lr)

    # TRL's trace does not clip either: beside AdamW's epsilon a small gradient that was scaled down takes another step.
    engine.step, engine._grad_clip = watched, 0.0
    before = _arrays(engine.module, master)
    learner.begin(FitPlan(lr=CHECKED_LR, beta=BETA))
    for number, frame in enumerate(frames):
        output = learner.step(frame, lr=CHECKED_LR, batch=number)
        losses.append(output.sums["loss"] / output.denominator)
    engine.step, engine._grad_clip = step, clip
    return Trace(losses=losses, gradients=gradients, moved=_moved(before, engine.module, master))


def _moved(before: dict[str, Any], module: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: value - before[name] for name, value in _arrays(module, read).items()}


def _arrays(module: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
    """What is read of every trained parameter, in float32."""
    found = {}
    for name, parameter in module.named_parameters():
        value = read(parameter) if parameter.requires_grad else None
        if value is not None:  # where no picture is shown, the tower has no gradient
            found[name.removeprefix("model.model.").removeprefix("model.")] = value.detach().float().clone().numpy()
    return found


# TRL -------------------------------------------------------------------------------------------------------------


def serve_trl(pipe: Any, job: Job) -> None:
    """The same questions."""
    multiprocessing.set_start_method("fork", force=True)  # of loader processes, as where nothing is set
    pairs = job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    setting, speeds = best_setting(job, pairs)
    pipe.send(("answer", speeds))
    question = pipe.recv()
    while question == "trace":
        pipe.send(("answer", _trace_trl(job, pairs, setting)))
        question = pipe.recv()

    def ask(result: float | None) -> str:
        nonlocal question
        if result is None:
            return question
        pipe.send(("answer", result))
        question = pipe.recv()
        return question

    if question != END:
        train(job, pairs, ask, setting)


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


def num_compiled() -> int:
    """Graphs that `torch.compile` has compiled in this process: a turn in which there were some is done again."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def best_setting(job: Job, pairs: Sequence[PreferencePair]) -> tuple[Setting, dict[Setting, float]]:
    """That with which TRL is fastest, and the pairs per second of each that was tried."""
    speeds: dict[Setting, float] = {}

    def best() -> Setting:
        return max(speeds, key=speeds.__getitem__)

    def measure(setting: Setting) -> None:
        results: list[float] = []

        def ask(result: float | None) -> str:
            results.extend([] if result is None else [result])
            return "turn" if len(results) < WARMUP + TRIED_TURNS else END

        train(job, pairs, ask, setting)
        speeds[setting] = job.work.pairs_per_turn / min(results[WARMUP:])

    sizes = [size for size in job.work.tried_sizes if job.work.batch % size == 0]
    for size in sizes:
        measure(Setting(size=size))
    if len(sizes) > 1:
        measure(replace(best(), workers=1))
        measure(replace(best(), compiled=True))
    return best(), speeds


def train(job: Job, pairs: Sequence[PreferencePair], ask: Callable[[float | None], str], setting: Setting) -> None:
    """Run TRL's own loop; between turns it waits in `ask`, which gets the last turn's result, until that says `END`."""
    trainer = _trainer(job, pairs, setting, max_steps=MOST_TURNS * job.work.steps)
    trainer.add_callback(_waiting(job.work.steps, ask))
    trainer.train()


def _waiting(steps: int, ask: Callable[[float | None], str]) -> Any:
    from transformers import TrainerCallback

    class Waiting(TrainerCallback):
        def begin(self) -> None:
            self.num_compiled = num_compiled()
            self.resident = reset_peak() if self.question == "peak" else 0
            self.started = time.perf_counter()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.question = ask(None)
            self.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps:
                return
            took = time.perf_counter() - self.started
            if num_compiled() == self.num_compiled:
                self.question = ask(peak_bytes() - self.resident if self.question == "peak" else took)
                control.should_training_stop = self.question == END
            self.begin()

    return Waiting()


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

    processor = AutoProcessor.from_pretrained(job.checkpoint)
    model = AutoModelForImageTextToText.from_pretrained(job.checkpoint, dtype=torch.float32)
    if job.work.frozen_vision:
        model.model.visual.requires_grad_(False)
    shows = job.work.picture is not None
    config = DPOConfig(
        output_dir=str(job.checkpoint / "trl"),
        beta=BETA,
        per_device_train_batch_size=setting.size,
        gradient_accumulation_steps=job.work.batch // setting.size,
        torch_compile=setting.compiled,
        dataloader_num_workers=setting.workers,
        dataloader_persistent_workers=False,
        dataloader_pin_memory=False,
        gradient_checkpointing=False,
        precompute_ref_log_probs=not shows,  # refused with pictures
        max_length=None,
        max_steps=max_steps,
        learning_rate=lr,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=clip,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        use_cpu=True,
        bf16=job.work.precision == "bf16",
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    return DPOTrainer(
        model=model,
        args=config,
        train_dataset=dataset(pairs, shows=shows),
        processing_class=processor if shows else processor.tokenizer,
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


def _trace_trl(job: Job, pairs: Sequence[PreferencePair], setting: Setting) -> Trace:
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
                gradients.update(_arrays(trainer.model, lambda parameter: parameter.grad))

    trainer.compute_loss = watched
    trainer.add_callback(Watching())
    before = _arrays(trainer.model, lambda parameter: parameter)
    trainer.train()
    passes = job.work.batch // setting.size
    losses = [statistics.mean(losses[first : first + passes]) for first in range(0, len(losses), passes)]
    return Trace(losses=losses, gradients=gradients, moved=_moved(before, trainer.model, lambda parameter: parameter))
