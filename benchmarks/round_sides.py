"""A whole online round on both sides: the loop of this package, and TRL's OnlineDPOTrainer in a process of its own."""

from __future__ import annotations

import gc
import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from actors.engines.vllm import Vllm, VllmEngine
from actors.engines.vllm_records import FORBIDDEN_BIAS
from benchmarks.learner_sides import END, num_compiled
from rlsys.app.cores import CoreClock
from rlsys.records import Critique, Generation, PreferencePair, Prompt, RolloutGroup, Verdict
from rlsys.scenes.source import make_prompt, read_id
from rlsys.scenes.truth import check, parse
from rlsys.scenes.world import sample

MOST_ROUNDS = 1000
ROUNDS_A_TURN = 3
"""Of ours. The next round's answers begin while a checkpoint is written; before the first and after the last there is none."""
TRIED_STEPS = 2
"""Counted steps with which a setting of TRL's is tried; the fastest counts, so that a noisy moment does not choose."""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
BETA = 0.1
LR = 1e-7
"""So small that all rounds are alike."""
TIE_BREAK = 1e-3
"""Share of a reward that only tells different answers apart, so that every prompt with two answers makes a pair."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Rounds of one kind, of one policy."""

    folder: str
    """Hugging Face folder of the policy."""
    num_prompts: int
    """Per round; two answers to each."""
    max_tokens: int
    full: bool = True
    """Every answer has `max_tokens` tokens: on both sides no special token can be sampled, the end included."""
    batch: int = 32
    """Pairs per optimizer step of ours."""
    tried: tuple[int, ...] = (32,)
    """Pairs per optimizer step with which TRL is tried; it answers as many prompts at once."""
    precision: str = "fp32"
    """Of ours, `fp32` or `bf16`."""
    precisions: tuple[str, ...] = ("fp32",)
    """In which TRL is tried with each of these numbers. The fastest of all settings counts."""
    compiles: bool = False
    """TRL is also tried compiled, which takes minutes."""
    untried: str = ""
    """Why larger ones are not among them."""
    words: tuple[str, ...] = ()
    """More configuration of our side."""
    vllm: bool = False
    """TRL answers with vLLM in its own process. It then trains without seeing the pictures: for text only."""
    shows: bool = True
    """Prompts show a picture."""

    def prompts(self, start: int, count: int) -> list[Prompt]:
        """The same ones for both sides."""
        found = [make_prompt("online", index, "describe") for index in range(start, start + count)]
        return found if self.shows else [replace(prompt, images=()) for prompt in found]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What TRL is run with."""

    size: int
    """Prompts per step."""
    precision: str
    compiled: bool = False
    """With `torch_compile`, whose minutes of compilation are not counted."""

    def __str__(self) -> str:
        return f"{self.size} in {self.precision}" + (" compiled" if self.compiled else "")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a side did in a round, or on average in each of a turn's rounds."""

    seconds: float
    num_pairs: float
    """Of answers with different rewards."""
    lengths: tuple[int, ...]
    """Tokens of the pairs' answers, of all rounds."""
    loss: float
    logprob: float
    """Mean of the pairs' tokens under the policy that sampled them, nats."""
    stages: dict[str, float] = field(default_factory=dict)
    """Busy seconds."""
    cores: dict[str, float] = field(default_factory=dict)
    """Kept busy by each stage's processes, mean over the turn; of ours."""

    @property
    def speed(self) -> float:
        """Pairs per second."""
        return self.num_pairs / self.seconds


def reward(prompt_id: str, question: str, answer: str) -> float:
    """Share of an answer's claims that are true of the scene, and a little that only the words decide."""
    split, index, _ = read_id(prompt_id)
    claims, scene = parse(answer, question).claims, sample(split, index)
    true = sum(check(claim, scene) for claim in claims) / max(1, len(claims))
    drawn = int.from_bytes(hashlib.sha256(answer.encode()).digest()[:4], "big") / 2**32
    return true + TIE_BREAK * drawn


# Ours ------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class ScenesOfJob:
    """The job's prompts."""

    job: Job

    def take(self, start: int, count: int) -> Iterator[Prompt]:
        """In order."""
        yield from self.job.prompts(start, count)


@dataclass(kw_only=True)
class Truth:
    """The world's truth instead of a critic: asks no engine."""

    needs_engine: ClassVar[bool] = False

    def requests(self, group: RolloutGroup) -> list:
        """Nothing to ask."""
        return []

    def verdicts(self, group: RolloutGroup, generations: Sequence[Generation]) -> tuple[Verdict, ...]:
        """One for each answer."""
        prompt = group.prompt
        scores = [reward(prompt.id, prompt.question, rollout.text) for rollout in group.rollouts]
        return tuple(Verdict(critiques=(Critique(text="", score=score),)) for score in scores)


@dataclass(kw_only=True)
class FullLength(Vllm):
    """vLLM that cannot end an answer before its last token."""

    def open(self, model: str, *, version: int = 0, raw_logits: bool = False) -> FullLengthEngine:
        """As `Vllm.open`."""
        return FullLengthEngine(self, model, version=version, raw_logits=raw_logits)


class FullLengthEngine(VllmEngine):
    """Its engine."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        chat = self._translator.chat
        self._translator.bias = dict.fromkeys(sorted(chat.special | chat.ends), FORBIDDEN_BIAS)


class Silent:
    """A tracker that shows nothing."""

    def track(self, name: str, items: Any, total: int) -> Any:
        """The items as they are."""
        return items


class Ours:
    """Rounds of `rlsys.rounds.run_rounds`: journal, checkpoint, weight update and its proof included."""

    def __init__(self, parts: Any) -> None:
        self.parts = replace(parts, tracker=Silent())
        self._first = self._version = 0
        self._clock: CoreClock | None = None

    def __call__(self) -> Turn:
        """A few rounds of a schedule that ends with them: the answers of no other are made while the other side works."""
        from rlsys.rounds import run_rounds

        first, end = self._first, self._first + ROUNDS_A_TURN
        parts = replace(self.parts, schedule=self.parts.schedule.cut(end))
        self._clock = self._clock or CoreClock(
            {"answering": parts.rollouts.pids, "training": parts.learner.pids, "driver": lambda: [os.getpid()]}
        )
        self._clock.lap()
        started = time.perf_counter()
        reports = list(run_rounds(parts, first=first, version=self._version))
        seconds = time.perf_counter() - started
        cores = self._clock.lap()
        self._first, self._version = end, reports[-1].policy_version
        for report in reports:
            if report.staleness:
                raise ValueError(f"round {report.round} trained on answers that were {report.staleness} versions old")
        pairs = [pair for report in reports for pair in parts.journal.read(report.round, PreferencePair)]
        rollouts = [rollout for pair in pairs for rollout in (pair.chosen, pair.rejected)]
        lengths = tuple(len(rollout.token_ids) for rollout in rollouts)
        return Turn(
            seconds=seconds / len(reports),
            num_pairs=len(pairs) / len(reports),
            lengths=lengths,
            loss=statistics.mean(report.loss for report in reports),
            logprob=sum(float(rollout.logprobs.sum()) for rollout in rollouts) / sum(lengths),
            cores=cores,
            stages={
                name: statistics.mean(report.seconds[name] for report in reports)
                for name in reports[0].seconds
                if name != "round"
            },
        )


@contextmanager
def our_rounds(job: Job) -> Iterator[Ours]:
    """A run as `rlsys align preset=scenes` puts it together, with the truth for a critic and two answers a prompt."""
    from rlsys.app import config as configuration
    from rlsys.app.assembly import assembled
    from rlsys.app.cluster import cluster
    from rlsys.app.starting import Host
    from rlsys.progress import Progress
    from rlsys.schedules.gate import GateConfig, MetricGate

    schedule = {
        "rounds": MOST_ROUNDS,
        "num_prompts": job.num_prompts,
        "num_candidates": 2,
        "max_tokens": job.max_tokens,
        "pairs": "best_worst",
        "min_margin": 0,
        "max_pairs_per_prompt": 0,
        "scale_w": 0,
        "beta": BETA,
        "lr": LR,
        "lag": 0,
    }
    given = [f"schedule.{name}={value}" for name, value in schedule.items()]
    own = ["eval.every=0", "output.keep_checkpoints=2", f"learner.batch_size={job.batch}"]
    precision = [f"learner.precision={job.precision}", f"rollout.engine.dtype={DTYPES[job.precision]}"]
    config, _ = configuration.load(["preset=scenes", *given, *own, *precision, *job.words])
    chosen = FullLength(**vars(config.rollout.engine)) if job.full else config.rollout.engine
    config = replace(
        config, prompts=ScenesOfJob(job=job), feedback=Truth(), rollout=replace(config.rollout, engine=chosen)
    )
    with (
        tempfile.TemporaryDirectory(prefix="rlsys-round-") as scratch,
        cluster(None) as machine,
        Progress() as progress,
        assembled(
            config,
            Host(machine=machine, progress=progress),
            Path(scratch),
            schedule=config.schedule.build(),
            policy=Path(job.folder),
            critic=None,
            gate=MetricGate(config=GateConfig()),
        ) as (parts, _),
    ):
        yield Ours(parts)


# TRL -------------------------------------------------------------------------------------------------------------


def serve_trl(pipe: Any, job: Job) -> None:
    """Says its settings, then answers every `turn` with a `Turn`, until it is told to end."""
    settings = [Setting(size=size, precision=precision) for precision in job.precisions for size in job.tried]
    # TRL's vLLM cannot be ended, so that only one trainer can be made with it.
    speeds = _speeds(job, settings) if len(settings) > 1 else {settings[0]: 0.0}
    best = max(speeds, key=speeds.__getitem__)
    pipe.send(("answer", {"best": best, "pairs per second": speeds}))
    question = pipe.recv()

    def ask(result: Turn | None) -> str:
        nonlocal question
        if result is not None:
            pipe.send(("answer", result))
            question = pipe.recv()
        return question

    if question != END:
        _train(job, best, steps=job.num_prompts // best.size, ask=ask)


def _speeds(job: Job, settings: Sequence[Setting]) -> dict[Setting, float]:
    """Pairs per second with each that fits, and with the fastest of them compiled where the job says so.

    Raises:
        MemoryError: none fits.
    """
    speeds = {one: speed for one in settings if (speed := _trial(job, one))}
    if not speeds:
        raise MemoryError(f"TRL does not fit with any of its settings: {', '.join(map(str, settings))}")
    if job.compiles:
        compiled = replace(max(speeds, key=speeds.__getitem__), compiled=True)
        speeds[compiled] = _trial(job, compiled)
    return speeds


def _trial(job: Job, setting: Setting) -> float:
    """Pairs per second of the fastest of `TRIED_STEPS`, after another one; 0 if it does not fit the GPU."""
    import torch

    found: list[Turn] = []

    def ask(result: Turn | None) -> str:
        found.extend([] if result is None else [result])
        return END if len(found) > TRIED_STEPS else "turn"

    try:
        _train(job, setting, steps=1, ask=ask)
    except torch.OutOfMemoryError:
        return 0.0
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return max(turn.speed for turn in found[1:])


def _train(job: Job, setting: Setting, *, steps: int, ask: Callable[[Turn | None], str]) -> None:
    """Run TRL's own loop; between turns of so many steps it waits in `ask`, which gets the last turn."""
    meter = Meter()
    trainer = _trainer(job, setting, max_steps=steps * MOST_ROUNDS, reward_func=meter.reward)
    meter.watch(trainer)
    trainer.add_callback(_waiting(steps, meter, ask))
    trainer.train()


class Meter:
    """What TRL's trainer does between two looks."""

    def __init__(self) -> None:
        self._said: dict[str, list[float]] = {"logps/chosen": [], "logps/rejected": []}
        self.begin()

    def begin(self) -> None:
        """A turn begins."""
        self._started = time.perf_counter()
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
        whole = self._stages["generate, train and reward"]
        stages = {
            "generate": self._stages["generate"],
            "train and reward": whole - self._stages["generate"],
            "loader and optimizer": seconds - whole,
        }
        return Turn(
            seconds=seconds,
            num_pairs=self._num_pairs,
            lengths=tuple(self._lengths),
            loss=statistics.mean(self._losses),
            logprob=self._logprob(),
            stages=stages,
        )

    def _logprob(self) -> float:
        """Of a token; TRL keeps the mean over a step's answers, of which every step has as many."""
        of_answers = [self._said[f"logps/{kind}"][self._num_said :] for kind in ("chosen", "rejected")]
        return statistics.mean([*of_answers[0], *of_answers[1]]) / statistics.mean(self._lengths)


def _length(ids: Sequence[int], ends: set[int]) -> int:
    """Tokens of an answer, the ending one included, without what it is padded with."""
    return next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))


def _waiting(steps: int, meter: Meter, ask: Callable[[Turn | None], str]) -> Any:
    import torch
    from transformers import TrainerCallback

    class Waiting(TrainerCallback):
        def begin(self) -> None:
            self.num_compiled = num_compiled()
            meter.begin()

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ask(None)
            self.begin()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % steps:
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if num_compiled() == self.num_compiled:
                control.should_training_stop = ask(meter.turn()) == END
            self.begin()

    return Waiting()


def _trainer(job: Job, setting: Setting, *, max_steps: int, reward_func: Callable[..., list]) -> Any:
    # The engine must be in this process for TRL to reach its weights.
    os.environ.update(TRL_EXPERIMENTAL_SILENCE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    from rlsys.chat import Chat

    on_gpu, chat = torch.cuda.is_available(), Chat(Path(job.folder))
    # TRL's mixed precision, as our learner's, keeps float32 weights beside what is multiplied in bfloat16.
    model = AutoModelForImageTextToText.from_pretrained(job.folder, dtype=torch.float32)
    forbidden = sorted(chat.special | chat.ends if job.full else chat.special - chat.ends)
    banned = {"logit_bias": dict.fromkeys(forbidden, FORBIDDEN_BIAS)} if job.vllm else {"suppress_tokens": forbidden}
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
        generation_kwargs=banned,
        use_vllm=job.vllm,
        vllm_gpu_memory_utilization=0.3,
        max_steps=max_steps,
        learning_rate=LR,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        optim="adamw_torch_fused",
        train_sampling_strategy="sequential",
        use_cpu=not on_gpu,
        bf16=setting.precision == "bf16",
        torch_compile=setting.compiled,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
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
