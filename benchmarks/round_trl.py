"""TRL's side of a whole online round: its OnlineDPOTrainer, at the setting with which it is fastest."""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import device
from benchmarks.judge import padded
from benchmarks.processes import ANSWER
from benchmarks.round_ours import BETA, Job, Turn, reward
from benchmarks.runs import LR, MOST_ROUNDS, preset
from benchmarks.trl import Ask, Tuning, between_turns, dataset, forget_compiled, options, serve, turns_of
from rlsys.asking.prompts import judge_prompt
from rlsys.chat import Chat
from rlsys.worlds.scenes.source import make_prompt, read_id

TRIED_STEPS = 2
"""Counted steps of a setting's trial, after another one."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What TRL is run with."""

    size: int
    """Prompts per step."""
    compiled: bool = False
    """With `torch_compile`, whose minutes of compilation are not counted."""

    def __str__(self) -> str:
        return f"{self.size}" + (" compiled" if self.compiled else "")


def serve_trl(pipe: Any, job: Job) -> None:
    """Tries every number of prompts and, on cores, the fastest of them compiled; says what trials have found, then answers
    every message with a `Turn`. (A static cache of keys and values was slower in every case.)
    """
    judge = WritingJudge(job.judge) if job.judge else None
    tuning = Tuning(lambda setting: _trial(job, setting, judge))
    for size in job.tried:
        tuning.add(Setting(size=size))
    if not device.on_gpu():
        tuning.add(replace(tuning.best, compiled=True))
    best, told = tuning.finish()
    pipe.send((ANSWER, f"{told}; taken: {best}"))
    serve(pipe, partial(_train, job, best, judge, job.num_prompts // best.size))


def _trial(job: Job, setting: Setting, judge: WritingJudge | None) -> list[float]:
    """Pairs per second of `TRIED_STEPS`, after another one."""
    return [turn.speed for turn in turns_of(partial(_train, job, setting, judge, 1), 1 + TRIED_STEPS)[1:]]


def _train(job: Job, setting: Setting, judge: WritingJudge | None, steps: int, ask: Ask) -> None:
    """Run TRL's own loop; between turns of so many steps it waits in `ask`, which gets the last turn."""
    meter = Meter(judge)
    trainer = _trainer(job, setting, max_steps=steps * MOST_ROUNDS, reward_func=meter.reward)
    meter.watch(trainer)
    trainer.add_callback(between_turns(steps, ask, begin=lambda _: meter.begin(), end=meter.turn))
    trainer.train()


class WritingJudge:
    """Writes a critique of every response of a step, greedily and all in one batch; the score is the raw logit of the token
    that ends it, read where it was sampled. A response that a prompt has twice is judged once, as on our side.
    """

    def __init__(self, folder: str) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from learners.tokens import Processor

        self._feedback = preset([]).feedback
        self._processor, chat = Processor(Path(folder)), Chat(Path(folder))
        self._score = chat.token_id(self._feedback.score_token)
        self._model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).to(device.name()).eval()
        self._generation = {
            "do_sample": False,
            "max_new_tokens": self._feedback.max_tokens,
            "eos_token_id": [self._score, *chat.ends],
            "pad_token_id": chat.tokenizer.pad_token_id,
            "suppress_tokens": sorted(chat.special - chat.ends - {self._score}),
            "return_dict_in_generate": True,
            "output_logits": True,
        }

    def scores(self, prompt_ids: Sequence[str], responses: Sequence[str]) -> list[float | None]:
        """One for each response; `None` where the critique did not come to its end."""
        asked = [
            judge_prompt(self._feedback.template, make_prompt(*read_id(prompt)), response)
            for prompt, response in zip(prompt_ids, responses, strict=True)
        ]
        distinct = list({prompt.id: prompt for prompt in asked}.values())
        sequences = [self._processor.prompt_ids(prompt) for prompt in distinct]
        inputs = padded(self._processor, self._model, distinct, sequences)
        output = self._model.generate(**inputs, **self._generation)
        written = output.sequences[:, inputs["input_ids"].shape[1] :].tolist()
        found: dict[str, float] = {}
        for row, (prompt, ids) in enumerate(zip(distinct, written, strict=True)):
            if self._score in ids:
                found[prompt.id] = float(output.logits[ids.index(self._score)][row, self._score])
        return [found.get(prompt.id) for prompt in asked]


class Meter:
    """What TRL's trainer does between two looks."""

    def __init__(self, judge: WritingJudge | None = None) -> None:
        self._judge = judge
        self._said: dict[str, list[float]] = {"logps/chosen": [], "logps/rejected": []}
        self.begin()

    def begin(self) -> None:
        """A turn begins."""
        self._started, self._cpu = time.perf_counter(), time.process_time()
        self._lengths: list[int] = []
        self._losses: list[float] = []
        self._scores: list[float] = []
        self._num_said = len(self._said["logps/chosen"])
        self._stages = {"generate": 0.0, "judge": 0.0, "step with both": 0.0}

    def watch(self, trainer: Any) -> None:
        """Keep the time of its methods, the losses, and what it says of itself."""
        self._said = trainer.stats
        self._end_ids = {trainer._tokenizer.pad_token_id, *trainer.eos_token_ids}
        trainer._generate = self._clocked("generate", trainer._generate)
        trainer.training_step = self._clocked("step with both", trainer.training_step)

    def _clocked(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments, **options)
            if name == "step with both":
                self._losses.append(float(result))
            self._stages[name] += time.perf_counter() - started
            return result

        return run

    def reward(
        self, completions: Any, completion_ids: Any, prompt_id: Any, question: Any, **_: Any
    ) -> list[float | None]:
        """TRL's reward function: that of our side. A critique that cannot be read is no reward, and makes no pair."""
        texts = [one[0]["content"] for one in completions]
        if self._judge is None:
            scores = [reward(*asked) for asked in zip(prompt_id, question, texts, strict=True)]
        else:
            scores = self._clocked("judge", self._judge.scores)(prompt_id, texts)
        half = len(scores) // 2
        for pair in zip(scores[:half], scores[half:], strict=True):
            self._scores += pair if None not in pair and pair[0] != pair[1] else ()
        self._lengths += [_length(ids, self._end_ids) for ids in completion_ids]
        return scores

    def turn(self) -> Turn:
        """What happened since it began."""
        seconds = time.perf_counter() - self._started
        cores = (time.process_time() - self._cpu) / seconds
        return Turn(
            seconds=seconds,
            num_examples=len(self._scores) / 2,
            lengths=tuple(self._lengths),
            scores=tuple(self._scores),
            loss=statistics.mean(self._losses),
            logprob=self._logprob(),
            stages={**self._stages, "round": seconds},
            cores={"all stages": cores},
        )

    def _logprob(self) -> float:
        """Mean logprob of a token. TRL keeps means over steps, and all steps have the same number of responses."""
        of_responses = [self._said[f"logps/{kind}"][self._num_said :] for kind in ("chosen", "rejected")]
        return statistics.mean([*of_responses[0], *of_responses[1]]) / statistics.mean(self._lengths)


def _length(ids: Sequence[int], ends: set[int]) -> int:
    """Tokens of a response, the ending one included, without what it is padded with."""
    return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


def _trainer(job: Job, setting: Setting, *, max_steps: int, reward_func: Callable[..., list]) -> Any:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    forget_compiled()
    chat = Chat(Path(job.folder))
    # TRL's mixed precision, as our learner's, keeps float32 weights beside what is multiplied in bfloat16.
    model = AutoModelForImageTextToText.from_pretrained(job.folder, dtype=torch.float32)
    forbidden = sorted(chat.special | chat.ends if job.full else chat.special - chat.ends)
    config = OnlineDPOConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        beta=BETA,
        loss_type="sigmoid",
        per_device_train_batch_size=setting.size,
        max_new_tokens=job.max_tokens,
        max_length=job.max_tokens + 256,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        generation_kwargs={"suppress_tokens": forbidden},
        max_steps=max_steps,
        learning_rate=LR,
        torch_compile=setting.compiled,
        **options(),
    )
    processor = AutoProcessor.from_pretrained(job.folder)
    return OnlineDPOTrainer(
        model=model,
        reward_funcs=reward_func,
        args=config,
        train_dataset=dataset(max_steps * setting.size, _row),
        processing_class=processor,
    )


def _row(number: int) -> dict[str, Any]:
    """A prompt, which is drawn when the loader asks for it, as on our side."""
    from PIL import Image

    prompt = make_prompt("online", number, "describe")
    asked = [{"role": "user", "content": prompt.question}]
    image = Image.fromarray(prompt.images[0].pixels)
    return {"prompt": asked, "prompt_id": prompt.id, "question": prompt.question, "image": image}
