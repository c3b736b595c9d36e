"""Our side of a whole online round, and what TRL's shares with it: the job, what a turn reports, and the reward."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from actors.engines.vllm import Vllm, VllmEngine
from actors.engines.vllm_records import FORBIDDEN_BIAS
from benchmarks.silence import Silent
from rlsys.app.cores import CoreClock
from rlsys.records import Critique, Generation, PreferencePair, Prompt, RolloutGroup, Verdict
from rlsys.worlds.scenes.source import make_prompt, read_id
from rlsys.worlds.scenes.truth import check, parse
from rlsys.worlds.scenes.world import sample

MOST_ROUNDS = 1000
ROUNDS_A_TURN = 3
"""Of ours. The next round's answers begin while a checkpoint is written; before the first and after the last there is none."""
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
    """TRL is also tried compiled, which takes minutes, and with a static cache."""
    untried: str = ""
    """Why some were left out of these; empty if none was."""
    taken: dict[int, float] = field(default_factory=dict)
    """Bytes that TRL takes with those of `tried` that may be too large for a machine."""
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
    """Kept busy by each stage's processes, mean over the turn; Ray's own belong to none."""

    @property
    def speed(self) -> float:
        """Pairs per second."""
        return self.num_pairs / self.seconds

    @property
    def cpu_seconds_per_pair(self) -> float:
        """A noisy machine changes it less than the speed. Of the processes in `cores`: of ours the engines, the
        learner's ranks and the driver, without Ray's own, which start actors and pass calls on; TRL has one.
        """
        return sum(self.cores.values()) * self.seconds / self.num_pairs


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
        scores = [reward(prompt.id, prompt.question, rollout.text) for rollout in group.responses]
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


class Ours:
    """Rounds of `rlsys.rounds.run_rounds`: journal, checkpoint, weight update and its proof included."""

    def __init__(self, parts: Any) -> None:
        self.parts = replace(parts, tracker=Silent())
        self._first = self._version = 0
        self._clock: CoreClock | None = None

    def pids(self) -> list[int]:
        """Of engines and ranks."""
        return [*self.parts.rollouts.pids(), *self.parts.learner.pids()]

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
    from rlsys.app.starting import Context
    from rlsys.report.progress import Progress
    from rlsys.schedules.gate import GateConfig, MetricGate

    schedule = {
        "rounds": MOST_ROUNDS,
        "num_prompts": job.num_prompts,
        "num_candidates": 2,
        "max_tokens": job.max_tokens,
        "lr": LR,
        "lag": 0,
    }
    given = [f"schedule.{name}={value}" for name, value in schedule.items()]
    given += ["examples=best_worst", "examples.min_margin=0", "examples.scale_w=0", f"objective.beta={BETA}"]
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
            Context(machine=machine, progress=progress),
            Path(scratch),
            schedule=config.schedule.build(),
            policy=Path(job.folder),
            critic=None,
            gate=MetricGate(config=GateConfig()),
        ) as (parts, _),
    ):
        yield Ours(parts)
