"""Our side of a whole online round, and what TRL's shares with it: the job, what a turn reports, and the reward."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from actors.engines.vllm import Vllm, VllmEngine
from actors.engines.vllm_records import FORBIDDEN_BIAS
from benchmarks import device
from benchmarks.runs import preset, started
from rlsys.app.cores import CoreClock
from rlsys.contracts import Asking
from rlsys.records import PreferencePair, RolloutGroup, Verdict
from rlsys.worlds.scenes.source import read_id
from rlsys.worlds.scenes.truth import check, parse
from rlsys.worlds.scenes.world import sample

ROUNDS_A_TURN = 2
"""Number of rounds in a turn of rlsys. The next round's responses begin while a checkpoint is written; before the first round
and after the last one there is none.
"""
DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
BETA = 0.1
TIE_BREAK = 1e-3
"""Share of a reward that only tells different responses apart, so that every prompt with two of them makes a pair."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Rounds of one kind, of one policy."""

    folder: str
    """Hugging Face folder of the policy."""
    num_prompts: int
    """Per round; two responses to each."""
    max_tokens: int = 64
    judge: str = ""
    """Hugging Face folder of a judge that writes critiques with scores; empty: the rewards come from the world's truth."""
    full: bool = True
    """Every response has `max_tokens` tokens: neither side can sample a special token, the end included."""
    batch: int = 32
    """Pairs per optimizer step of ours."""
    tried: tuple[int, ...] = (32,)
    """Pairs per optimizer step with which TRL is tried; it answers as many prompts at once."""
    words: tuple[str, ...] = ()
    """Further configuration of our side."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a side did in a round, or on average in each of a turn's rounds."""

    seconds: float
    num_examples: float
    """Mean number of pairs per round, each of two responses with different rewards."""
    lengths: tuple[int, ...]
    """Tokens of the responses, of all rounds."""
    scores: tuple[float, ...]
    """Rewards of the pairs' responses, of all rounds."""
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
        return self.num_examples / self.seconds


def reward(prompt_id: str, question: str, response: str) -> float:
    """Share of a response's claims that are true of the scene, and a little that depends on the text alone."""
    split, index, _ = read_id(prompt_id)
    claims, scene = parse(response, question).claims, sample(split, index)
    true = sum(check(claim, scene) for claim in claims) / max(1, len(claims))
    drawn = int.from_bytes(hashlib.sha256(response.encode()).digest()[:4], "big") / 2**32
    return true + TIE_BREAK * drawn


@dataclass(kw_only=True)
class Truth:
    """The world's truth instead of a judge: asks no engine."""

    roles: ClassVar[tuple[str, ...]] = ()

    def judge(self, group: RolloutGroup) -> Asking[tuple[Verdict, ...]]:
        """One verdict for each response."""
        yield from ()
        prompt = group.prompt
        scores = [reward(prompt.id, prompt.question, response.text) for response in group.responses]
        return tuple(Verdict(scores={Verdict.MAIN: score}) for score in scores)


@dataclass(kw_only=True)
class FullLength(Vllm):
    """vLLM that cannot end a response before its last token."""

    def open(self, model: str, **given: Any) -> VllmEngine:
        """As `Vllm.open`."""
        engine = super().open(model, **given)
        chat = engine._translator.chat
        engine._translator.bias = dict.fromkeys(sorted(chat.special | chat.ends), FORBIDDEN_BIAS)
        return engine


class Ours:
    """Rounds of `rlsys.rounds.run_rounds`: journal, checkpoint, weight update and its proof included."""

    def __init__(self, job: Job) -> None:
        self._stack = ExitStack()
        judge = Path(job.judge) if job.judge else None
        self.parts = self._stack.enter_context(started(configuration(job), Path(job.folder), judge))
        self.close = self._stack.close
        self._first = self._version = 0
        self._clock: CoreClock | None = None

    def pids(self) -> list[int]:
        """Process ids of the engines, the feedback and the ranks."""
        return [*self.parts.rollouts.pids(), *self.parts.feedback.pids(), *self.parts.learner.pids()]

    def __call__(self, turn: int) -> Turn:
        """A few rounds of a schedule that ends with them, so that no responses are sampled while the other side works."""
        from rlsys.rounds import run_rounds

        first, end = self._first, self._first + ROUNDS_A_TURN
        parts = replace(self.parts, schedule=self.parts.schedule.cut(end))
        stages = {"answering": parts.rollouts.pids, "judging": parts.feedback.pids, "training": parts.learner.pids}
        self._clock = self._clock or CoreClock({**stages, "driver": lambda: [os.getpid()]})
        self._clock.lap()
        began = time.perf_counter()
        reports = list(run_rounds(parts, first=first, version=self._version))
        seconds = time.perf_counter() - began
        cores = self._clock.lap()
        self._first, self._version = end, reports[-1].policy_version
        for report in reports:
            if report.staleness:
                raise ValueError(f"round {report.round} trained on responses that were {report.staleness} versions old")
        pairs = [pair for report in reports for pair in parts.journal.read(report.round, PreferencePair)]
        responses = [response for pair in pairs for response in (pair.chosen, pair.rejected)]
        lengths = tuple(len(response.token_ids) for response in responses)
        stages = {name: statistics.mean(report.seconds[name] for report in reports) for name in reports[0].seconds}
        return Turn(
            seconds=seconds / len(reports),
            num_examples=len(pairs) / len(reports),
            lengths=lengths,
            scores=tuple(score for pair in pairs for score in (pair.chosen_score, pair.rejected_score)),
            loss=statistics.mean(report.loss for report in reports),
            logprob=sum(response.logprob for response in responses) / sum(lengths),
            cores=cores,
            stages=stages | {"proof": statistics.mean(parts.weights.proof_s[-len(reports) :])},
        )


def configuration(job: Job) -> Any:
    """That of preset `scenes`, with the job's judge or the truth, and two responses a prompt."""
    schedule = {
        "num_prompts": job.num_prompts,
        "num_candidates": 2,
        "max_tokens": job.max_tokens,
        "lag": 0,
    }
    given = [f"schedule.{name}={value}" for name, value in schedule.items()]
    given += ["examples=best_worst", "examples.min_margin=0", "examples.scale_w=0", f"objective.beta={BETA}"]
    precision = device.precision()
    own = [f"learner.batch_size={job.batch}", f"learner.precision={precision}"]
    config = preset([*given, *own, f"rollout.engine.dtype={DTYPES[precision]}", *job.words])
    engine = FullLength(**vars(config.rollout.engine)) if job.full else config.rollout.engine
    return replace(
        config,
        feedback=config.feedback if job.judge else Truth(),
        rollout=replace(config.rollout, engine=engine),
    )
