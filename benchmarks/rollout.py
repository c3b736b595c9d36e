"""Tokens per second through the rollout actors, against a bare `vllm.LLM.generate` with the same requests.

Ours is the whole way: prompts with pictures encoded in the driver, sent to a Ray actor, rendered, answered, log-
probabilities and texts read, groups encoded, sent back and decoded. The bare side is timed for the call of `generate`
alone, on token ids and pictures made before. Both get all prompts of a turn in one call of the engine: at the end of a call
fewer and fewer sequences are left to be sampled at once. Same engine options, same sampling parameters and seeds, caches
emptied before a turn on both sides. The two live in processes of their own, with all cores each, and take turns, many and
short: a machine's own speed changes more within a minute than they differ. Whoever waits stands still.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from actors import engines
from actors.rollout import RolloutTask, RolloutWorker, merged
from benchmarks.arguments import parse
from benchmarks.harness import Row, Spread, Target, of_the_fastest, table, write
from benchmarks.models import scenes_models, small_policy
from benchmarks.processes import whole_machine
from benchmarks.sides import Side, Worker, compare
from rlsys.app.cluster import cluster
from rlsys.placement import Placement
from rlsys.records import Prompt, Response, RoundPlan
from rlsys.report.progress import quiet_libraries
from rlsys.schedules.phases import Phase
from rlsys.worlds.scenes.source import make_prompt

CANDIDATES = 8
MAX_TOKENS = 64
SEED = 0
REPEATS = 10
TARGET = Target(at_least=0.97)
LEAST_SAME = 0.9
"""Of the prompts that must have the same answers, token by token, on both sides: where requests stand beside others, a sum
may round otherwise and another token be drawn.
"""
MOST_OTHER_TOKENS = 0.05
"""Of all sampled tokens, by how much their numbers may differ."""
MODELS = {"scenes": 128, "2.7 M": 64}
"""Prompts a turn."""
MODES = {"eager": True, "compiled": False}
BETWEEN = "seconds between the actor's calls"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a way to run it."""

    name: str
    folder: str
    num_prompts: int
    eager: bool

    def engine(self) -> Any:
        """The engine of both sides."""
        engines.discover()
        return engines.engine.make("vllm", max_model_len=512, enforce_eager=self.eager)

    def prompts(self, turn: int) -> list[Prompt]:
        """Every turn has other prompts: no side profits from pictures that it has seen."""
        first = turn * self.num_prompts
        return [make_prompt("train", index, "describe") for index in range(first, first + self.num_prompts)]

    def plan(self, turn: int) -> RoundPlan:
        """What a round would ask."""
        phase = Phase(num_prompts=self.num_prompts, num_candidates=CANDIDATES, max_tokens=MAX_TOKENS)
        return phase.plan(0, turn)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a side did."""

    seconds: float
    num_tokens: int
    answers: tuple[bytes, ...]
    """For every prompt, a digest of its distinct answers and their counts."""
    cpu_seconds: float
    """Of the processes that this side has for itself."""
    outside: float = 0.0
    """Of the seconds, those in which no call of the actor was in work; in a call it decodes, renders, has the engine
    answer, reads and encodes.
    """

    @property
    def speed(self) -> float:
        return self.num_tokens / self.seconds


class Ours:
    """A rollout stage with one actor."""

    def __init__(self, case: Case, placement: Placement | None = None) -> None:
        """
        Args:
            placement: of the actor; the whole machine if not given.
        """
        from actors.stages import RolloutStage

        self._case = case
        self._stage = RolloutStage(
            engine=case.engine(),
            current=lambda: (case.folder, 0),
            placements=[placement or whole_machine()],
            seed=SEED,
            batch=case.num_prompts,
        )

    def __call__(self, turn: int) -> Turn:
        prompts, plan = self._case.prompts(turn), self._case.plan(turn)
        pids = [os.getpid(), *self._stage.pids()]
        started, busy = time.perf_counter(), _cpu_seconds(pids)
        groups = list(self._stage.stream(prompts, plan))
        seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds(pids) - busy
        outside = seconds - self._stage.count(plan.round)["seconds"]
        return replace(_turn(seconds, cpu_seconds, [group.responses for group in groups]), outside=outside)

    def pids(self) -> list[int]:
        """Of the actor."""
        return self._stage.pids()

    def close(self) -> None:
        self._stage.close()


def bare(case: Case) -> Any:
    """The other side: makes the requests as the actor does, and times `generate`."""
    worker = RolloutWorker(engine=case.engine(), model=case.folder, version=0, seed=SEED)
    engine, words = worker._engine, worker._engine._translator

    def work(turn: int) -> Turn:
        task = RolloutTask.of(case.plan(turn), 0)
        requests = [worker._request(prompt, task, 0, CANDIDATES) for prompt in case.prompts(turn)]
        prompts = [words.prompt(prompt) for prompt, _ in requests]
        sampling = [words.sampling(wanted) for _, wanted in requests]
        started, busy = time.perf_counter(), _cpu_seconds([os.getpid()])
        engine._forget()
        outputs = engine._llm.generate(prompts, sampling, use_tqdm=False)
        seconds, cpu_seconds = time.perf_counter() - started, _cpu_seconds([os.getpid()]) - busy
        generations = words.generations(outputs, [wanted for _, wanted in requests])
        found = [
            merged([(one, wanted) for one in generation.completions])
            for generation, (_, wanted) in zip(generations, requests, strict=True)
        ]
        return _turn(seconds, cpu_seconds, found)

    return work


def _cpu_seconds(pids: Sequence[int]) -> float:
    return sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def _turn(seconds: float, cpu_seconds: float, answers: Iterable[Sequence[Response]]) -> Turn:
    listed = list(answers)
    tokens = sum(rollout.count * len(rollout.token_ids) for rollouts in listed for rollout in rollouts)
    return Turn(seconds=seconds, cpu_seconds=cpu_seconds, num_tokens=tokens, answers=tuple(map(_digest, listed)))


def _digest(rollouts: Sequence[Response]) -> bytes:
    hasher = hashlib.sha256()
    for rollout in rollouts:
        hasher.update(np.int32([rollout.count, len(rollout.token_ids)]).tobytes() + rollout.token_ids.tobytes())
    return hasher.digest()


def measure(
    case: Case,
    repeats: int,
    opened: Callable[[Any], Worker] = Ours,
    target: Target | None = TARGET,
    least_same: float = LEAST_SAME,
) -> Row:
    """One line of the table.

    Args:
        opened: starts our side.
        least_same: share of the prompts that must have the same answers on both sides.

    Raises:
        ValueError: fewer have, or one side has sampled more than the other.
    """
    ours = opened(case)  # not both at once: an engine on a GPU takes what others allocate meanwhile for its own
    speeds, our_turns, their_turns = compare(ours, Side(bare, case), repeats=repeats)
    same = [
        a == b
        for one, two in zip(our_turns, their_turns, strict=True)
        for a, b in zip(one.answers, two.answers, strict=True)
    ]
    if sum(same) < least_same * len(same):
        raise ValueError(f"{case.name}: the answers to {sum(same)} of {len(same)} prompts are the same on both sides")
    tokens = [sum(turn.num_tokens for turn in turns) for turns in (our_turns, their_turns)]
    if abs(tokens[0] / tokens[1] - 1) > MOST_OTHER_TOKENS:
        raise ValueError(f"{case.name}: {tokens[0]} tokens, {tokens[1]} by bare vLLM")
    return Row(
        case=case.name,
        ours=speeds[0],
        other=speeds[1],
        other_name="bare vLLM",
        ratio=speeds[2],
        unit="tokens/s",
        target=target,
        checked=f"all token ids of {sum(same)} of {len(same)} prompts are the same on both sides",
        extra={
            "tokens per answer": tokens[0] / len(same) / CANDIDATES,
            "seconds per turn": Spread.of([turn.seconds for turn in our_turns]).median,
            BETWEEN: Spread.of([turn.outside for turn in our_turns]).median,
            "CPU seconds per turn": Spread.of([turn.cpu_seconds for turn in our_turns]).median,
            "CPU seconds per turn of bare vLLM": Spread.of([turn.cpu_seconds for turn in their_turns]).median,
        },
    )


def _why(row: Row) -> str:
    if row.met is not False:
        return ""
    return (
        f"Of {row.extra['seconds per turn']:.3g} s a turn, {row.extra[BETWEEN]:.2g} s pass between the actor's calls, "
        "the others inside them, where it also decodes and renders prompts, reads texts and log-probabilities and "
        "encodes groups; bare vLLM is timed for the call of `generate` alone."
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    titles = [f"{name}, {mode}" for name in MODELS for mode in MODES]
    options = parse(__doc__.splitlines()[0], words, cases=titles, repeats=REPEATS)
    quiet_libraries()
    rows = []
    policy, _ = scenes_models()
    with tempfile.TemporaryDirectory() as scratch, cluster(None):
        folders = {"scenes": policy, "2.7 M": small_policy(Path(scratch))}
        for name, num_prompts in MODELS.items():
            modes = []
            for mode, eager in MODES.items():
                title = f"{name}, {mode}"
                if title in options.cases:
                    case = Case(name=title, folder=str(folders[name]), num_prompts=num_prompts, eager=eager)
                    modes.append(measure(case, options.repeats, target=None))
                    print(table("measured", modes[-1:]), flush=True)
            rows += [replace(row, note=_why(row)) for row in of_the_fastest(modes, TARGET)]
    title = "rollout: tokens per second through the actors, end to end, against vLLM alone"
    write("rollout", title, rows, repeats=options.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
