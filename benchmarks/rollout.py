"""Tokens per second through the rollout actors, against a bare `vllm.LLM.generate` with the same requests.

Ours is the whole way: prompts with images encoded in the driver, sent to a Ray actor, rendered, answered, logprobs and
texts read, groups encoded, sent back and decoded. The bare side is timed for the call of `generate` alone, on token ids and
images made before. Both get all prompts of a turn in one call of the engine: at the end of a call fewer and fewer
sequences are left to be sampled at once. Both have the same engine options, sampling parameters and seeds, and empty caches
at the start of a turn. The two live in processes of their own, with all cores each, and take many short turns: a machine's
speed changes more within a minute than they differ.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import device
from benchmarks.harness import Options, Row, Target
from benchmarks.learner_work import SMALL
from benchmarks.processes import Child, compare, serve_turns
from benchmarks.runs import scenes_models
from rlsys.app.cluster import cluster
from rlsys.conversations.single_turn import completions_of, first_samplings, merged
from rlsys.records import Prompt, Response, RoundPlan
from rlsys.schedules.phases import Phase
from rlsys.worlds.scenes.policy import make_policy
from rlsys.worlds.scenes.source import make_prompt

RESPONSES = 8
MAX_TOKENS = 64
SEED = 0
TARGET = Target(at_least=0.97)
"""Target of the eager and of the compiled mode alike, although a user takes the faster one."""
LEAST_SAME = 0.9
"""Share of the prompts that must have the same responses, token by token, on both sides: beside other requests a sum may
round differently, and another token be drawn. In bfloat16 that is frequent, and the number of tokens alone is held.
"""
MOST_OTHER_TOKENS = 0.05
"""By how much the numbers of all sampled tokens may differ, as a share."""
MODELS = {"scenes": 128, "2.7 M": 64}
"""Prompts a turn."""
MODES = {"eager": True, "compiled": False}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and a way to run it."""

    name: str
    folder: str
    num_prompts: int
    eager: bool

    def engine(self) -> Any:
        """The engine of both sides."""
        return device.engine(max_model_len=512, enforce_eager=self.eager)

    def prompts(self, turn: int) -> list[Prompt]:
        """Every turn has other prompts, so that no side profits from images that it has seen."""
        count = self.num_prompts
        return [make_prompt("train", index, "describe") for index in range(turn * count, (turn + 1) * count)]

    def plan(self, turn: int) -> RoundPlan:
        """What a round would ask."""
        phase = Phase(num_prompts=self.num_prompts, num_candidates=RESPONSES, max_tokens=MAX_TOKENS)
        return phase.plan(0, turn)


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a side did."""

    seconds: float
    num_tokens: int
    responses: list[list[tuple[int, bytes]]]
    """For every prompt, its distinct responses: how often each was sampled, and its token ids."""

    @classmethod
    def of(cls, seconds: float, found: Iterable[Sequence[Response]]) -> Turn:
        responses = [[(one.count, one.token_ids.astype(np.int32).tobytes()) for one in own] for own in found]
        tokens = sum(count * len(ids) // 4 for own in responses for count, ids in own)
        return cls(seconds=seconds, num_tokens=tokens, responses=responses)

    @property
    def speed(self) -> float:
        return self.num_tokens / self.seconds


class Ours:
    """A rollout stage with one actor."""

    def __init__(self, case: Case) -> None:
        from actors.stages import RolloutStage

        self._case = case
        self._stage = RolloutStage(
            engine=case.engine(),
            current=lambda: (case.folder, 0),
            placements=[device.place()],
            seed=SEED,
            batch=case.num_prompts,
        )
        self.pids, self.close = self._stage.pids, self._stage.close

    def __call__(self, turn: int) -> Turn:
        prompts, plan = self._case.prompts(turn), self._case.plan(turn)
        started = time.perf_counter()
        groups = list(self._stage.stream(prompts, plan))
        return Turn.of(time.perf_counter() - started, [group.responses for group in groups])


def bare(case: Case) -> Any:
    """The other side: makes the requests as the actor does, and times `generate`."""
    engine = case.engine().open(case.folder)
    translator = engine._translator

    def work(turn: int) -> Turn:
        plan = case.plan(turn)
        asked = [(prompt, first_samplings(prompt, plan, SEED)) for prompt in case.prompts(turn)]
        samplings = [wanted for _, (wanted,) in asked]  # a plan of one temperature
        prompts = [translator.prompt(prompt) for prompt, _ in asked]
        sampling = [translator.sampling(wanted) for wanted in samplings]
        started = time.perf_counter()
        engine._forget()
        outputs = engine._llm.generate(prompts, sampling, use_tqdm=False)
        seconds = time.perf_counter() - started
        generations = translator.generations(outputs, samplings)
        found = zip(generations, samplings, strict=True)
        return Turn.of(seconds, [merged(completions_of([generation], [wanted])) for generation, wanted in found])

    return work


def measure(case: Case, repeats: int) -> Row:
    """One line of the table.

    Raises:
        ValueError: too few responses are the same, or one side has sampled more than the other.
    """
    ours = Ours(case)  # it starts first: an engine on a GPU takes what others allocate meanwhile for its own
    speeds, our_turns, their_turns = compare(ours, Child(serve_turns, bare, case), repeats=repeats)
    turns = zip(our_turns, their_turns, strict=True)
    same = [a == b for one, two in turns for a, b in zip(one.responses, two.responses, strict=True)]
    if sum(same) < (0.0 if device.on_gpu() else LEAST_SAME) * len(same):
        raise ValueError(f"{case.name}: the responses to {sum(same)} of {len(same)} prompts are the same on both sides")
    tokens = [sum(turn.num_tokens for turn in side) for side in (our_turns, their_turns)]
    if abs(tokens[0] / tokens[1] - 1) > MOST_OTHER_TOKENS:
        raise ValueError(f"{case.name}: {tokens[0]} tokens, {tokens[1]} by bare vLLM")
    return Row.versus(
        speeds,
        case=case.name,
        other_name="bare vLLM",
        unit="tokens/s",
        target=TARGET,
        checked=f"all token ids of {sum(same)} of {len(same)} prompts are the same on both sides",
        extra={"tokens per response": tokens[0] / len(same) / RESPONSES},
    )


def cases(options: Options) -> list[str]:
    """Names of all cases."""
    return [f"{name}, {mode}" for name in MODELS for mode in MODES]


def rows(options: Options) -> Iterator[Row]:
    """Measure."""
    with tempfile.TemporaryDirectory(prefix="rlsys-rollout-") as scratch:
        small = make_policy(Path(scratch), seed=0, shape=SMALL)
        folders = {"scenes": scenes_models()[0], "2.7 M": small}
        with cluster(None):
            for name, count in MODELS.items():
                for mode, eager in MODES.items():
                    case = Case(name=f"{name}, {mode}", folder=str(folders[name]), num_prompts=count, eager=eager)
                    if options.wants(case.name):
                        yield measure(case, options.repeats)
