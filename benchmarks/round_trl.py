"""TRL's side of a whole online round: its OnlineDPOTrainer, at the setting with which it is fastest."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from actors.engines.vllm_records import FORBIDDEN_BIAS
from benchmarks.processes import ANSWER, END
from benchmarks.round_sides import BETA, LR, MOST_ROUNDS, Job, Turn, reward
from benchmarks.trl_turns import OPTIONS, Tuned, Tuning, between_turns, forget_compiled

TRIED_STEPS = 2
"""Counted steps of a setting's trial, after another one."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What TRL is run with."""

    size: int
    """Prompts per step."""
    precision: str
    compiled: bool = False
    """With `torch_compile`, whose minutes of compilation are not counted."""
    static: bool = False
    """Answers with a static cache of keys and values, whose shapes stay the same from token to token: compiled, that may be
    faster.
    """

    def __str__(self) -> str:
        ways = (" compiled" if self.compiled else "") + (" with a static cache" if self.static else "")
        return f"{self.size} in {self.precision}{ways}"


def serve_trl(pipe: Any, job: Job) -> None:
    """Says what trials of its settings have found, then answers every `turn` with a `Turn`, until it is told to end."""
    settings = [Setting(size=size, precision=precision) for precision in job.precisions for size in job.tried]
    # TRL's vLLM cannot be ended, so that only one trainer can be made with it.
    tuned = _tuned(job, settings) if len(settings) > 1 else Tuned(best=settings[0])
    pipe.send((ANSWER, tuned))
    question = pipe.recv()

    def ask(result: Turn | None) -> str:
        nonlocal question
        if result is not None:
            pipe.send((ANSWER, result))
            question = pipe.recv()
        return question

    if question != END:
        _train(job, tuned.best, steps=job.num_prompts // tuned.best.size, ask=ask)


def _tuned(job: Job, settings: Sequence[Setting]) -> Tuned:
    """Pairs per second with each, and with the fastest of them compiled, without and with a static cache, where the job says
    so; by the median of the steps, those of the fastest two from two trials. (A static cache without compilation was 7 to 30%
    slower in each of the four cases.)

    Raises:
        MemoryError: none fits.
    """
    tuning = Tuning(lambda setting: _trial(job, setting))
    for one in settings:
        tuning.add(one)
    best = tuning.best
    if job.compiles and best is not None:
        for one in (replace(best, compiled=True), replace(best, compiled=True, static=True)):
            tuning.add(one)
    tuned = tuning.finish()
    if tuned.best is None:
        raise MemoryError(f"TRL runs with none of its settings: {tuned}")
    return tuned


def _trial(job: Job, setting: Setting) -> list[float]:
    """Pairs per second of `TRIED_STEPS`, after another one."""
    found: list[Turn] = []

    def ask(result: Turn | None) -> str:
        found.extend([] if result is None else [result])
        return END if len(found) > TRIED_STEPS else "turn"

    _train(job, setting, steps=1, ask=ask)
    return [turn.speed for turn in found[1:]]


def _train(job: Job, setting: Setting, *, steps: int, ask: Callable[[Turn | None], str]) -> None:
    """Run TRL's own loop; between turns of so many steps it waits in `ask`, which gets the last turn."""
    meter = Meter()
    trainer = _trainer(job, setting, max_steps=steps * MOST_ROUNDS, reward_func=meter.reward)
    meter.watch(trainer)
    trainer.add_callback(between_turns(steps, ask, begin=lambda _: meter.begin(), end=meter.turn))
    trainer.train()


class Meter:
    """What TRL's trainer does between two looks."""

    def __init__(self) -> None:
        self._said: dict[str, list[float]] = {"logps/chosen": [], "logps/rejected": []}
        self.begin()

    def begin(self) -> None:
        """A turn begins."""
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._lengths: list[int] = []
        self._losses: list[float] = []
        self._num_pairs = 0
        self._num_said = len(self._said["logps/chosen"])
        self._stages = {"generate": 0.0, "generate, train and reward": 0.0}

    def watch(self, trainer: Any) -> None:
        """Keep the time of its methods, the losses, and what it says of itself."""
        self._said = trainer.stats
        self._end_ids = {trainer._tokenizer.pad_token_id, *trainer.eos_token_ids}
        answering = "_generate_vllm" if trainer.use_vllm else "_generate"
        setattr(trainer, answering, self._clocked("generate", getattr(trainer, answering)))
        trainer.training_step = self._clocked("generate, train and reward", trainer.training_step)

    def _clocked(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments, **options)
            if name != "generate":
                self._losses.append(float(result))
            self._stages[name] += time.perf_counter() - started
            return result

        return run

    def reward(self, completions: Any, completion_ids: Any, prompt_id: Any, question: Any, **_: Any) -> list[float]:
        """TRL's reward function: that of our side."""
        texts = [one[0]["content"] for one in completions]
        scores = [reward(*asked) for asked in zip(prompt_id, question, texts, strict=True)]
        half = len(scores) // 2
        self._num_pairs += sum(a != b for a, b in zip(scores[:half], scores[half:], strict=True))
        self._lengths += [_length(ids, self._end_ids) for ids in completion_ids]
        return scores

    def turn(self) -> Turn:
        """What happened since it began."""
        seconds = time.perf_counter() - self._started
        cores = (time.process_time() - self._cpu) / seconds
        whole = self._stages["generate, train and reward"]
        stages = {
            "generate": self._stages["generate"],
            "train and reward": whole - self._stages["generate"],
            "the rest (loader, optimizer)": seconds - whole,
        }
        return Turn(
            seconds=seconds,
            num_pairs=self._num_pairs,
            lengths=tuple(self._lengths),
            loss=statistics.mean(self._losses),
            logprob=self._logprob(),
            stages=stages,
            cores={"all stages": cores},
        )

    def _logprob(self) -> float:
        """Of a token; TRL keeps the mean over a step's answers, of which every step has as many."""
        of_answers = [self._said[f"logps/{kind}"][self._num_said :] for kind in ("chosen", "rejected")]
        return statistics.mean([*of_answers[0], *of_answers[1]]) / statistics.mean(self._lengths)


def _length(ids: Sequence[int], ends: set[int]) -> int:
    """Tokens of an answer, the ending one included, without what it is padded with."""
    return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


def _trainer(job: Job, setting: Setting, *, max_steps: int, reward_func: Callable[..., list]) -> Any:
    # The engine must be in this process for TRL to reach its weights.
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from rlsys.chat import Chat

    forget_compiled()
    on_gpu, chat = torch.cuda.is_available(), Chat(Path(job.folder))
    # TRL's mixed precision, as our learner's, keeps float32 weights beside what is multiplied in bfloat16.
    model = AutoModelForImageTextToText.from_pretrained(job.folder, dtype=torch.float32)
    forbidden = sorted(chat.special | chat.ends if job.full else chat.special - chat.ends)
    generation = (
        {"logit_bias": dict.fromkeys(forbidden, FORBIDDEN_BIAS)} if job.vllm else {"suppress_tokens": forbidden}
    )
    if setting.static:
        generation["cache_implementation"] = "static"
    config = OnlineDPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        beta=BETA,
        loss_type="sigmoid",
        per_device_train_batch_size=setting.size,
        gradient_accumulation_steps=1,
        gradient_checkpointing=False,
        max_new_tokens=job.max_tokens,
        max_length=job.max_tokens + 256,
        temperature=1.0,
        top_p=1.0,
        top_k=-1 if job.vllm else 0,
        generation_kwargs=generation,
        use_vllm=job.vllm,
        vllm_gpu_memory_utilization=0.3,
        max_steps=max_steps,
        learning_rate=LR,
        use_cpu=not on_gpu,
        bf16=setting.precision == "bf16",
        torch_compile=setting.compiled,
        dataloader_pin_memory=False,
        logging_strategy="no",
        **OPTIONS,
    )
    processor = AutoProcessor.from_pretrained(job.folder)
    return OnlineDPOTrainer(
        model=model,
        reward_funcs=reward_func,
        args=config,
        train_dataset=_dataset(job, max_steps * setting.size),
        processing_class=processor,
    )


def _dataset(job: Job, count: int) -> Any:
    """A prompt is drawn when the loader asks for it, as on our side."""
    from datasets import Dataset
    from PIL import Image as PillowImage

    def look_up(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
        prompts = [job.prompts(number, 1)[0] for number in batch["number"]]
        columns: dict[str, list[Any]] = {
            "prompt": [[{"role": "user", "content": prompt.question}] for prompt in prompts],
            "prompt_id": [prompt.id for prompt in prompts],
            "question": [prompt.question for prompt in prompts],
        }
        if job.shows:
            columns["image"] = [PillowImage.fromarray(prompt.images[0].pixels) for prompt in prompts]
        return columns

    return Dataset.from_dict({"number": list(range(count))}).with_transform(look_up)
