"""Critiques with scores per second of the critic's actor, against writing the critiques first and scoring them after.

Ours has critique and score from one pass of the engine: the score is the raw logit of the token that ends the critique.
The other side writes the same critiques with the same engine, and then reads every score from a forward pass of the
critic over prompt, picture and critique in transformers: sequences sorted by length, pictures processed once each,
logits of the last position only, and the best of several batch sizes. Same critic, same answers, all cores each, in turn; the
engine in both of its modes, eager as in the preset, and compiled, which starts later and writes faster. The target is held to
the faster one. Each side takes whichever is faster for it, 32 groups a call, as in the preset, or all of a turn.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from actors import engines
from actors.judge import JudgeWorker
from benchmarks.arguments import parse
from benchmarks.harness import Row, Target, of_the_fastest, seconds, write
from benchmarks.models import scenes_models
from benchmarks.processes import whole_machine
from benchmarks.sides import Side, compare
from rlsys import wire
from rlsys.app import config as configuration
from rlsys.app.cluster import cluster
from rlsys.records import Completion, Prompt, RolloutGroup, ScoredGroup, Verdict
from rlsys.report.progress import quiet_libraries
from rlsys.schedules.phases import Phase
from rlsys.worlds.scenes.source import make_prompt

PROMPTS = 96
CANDIDATES = 8
REPEATS = 10
"""Turns of three seconds, in which a machine's own speed changes by more than the sides differ."""
TRIED_GROUPS = (32, PROMPTS)
"""Per call of the engine: as in the preset, or all of a turn."""
TRIED_BATCHES = (16, 32, 64, 128, 256)
"""Sequences per forward pass of the other side."""
TRIALS = 2
"""Of each of these, on each side; the fastest counts, and decides before the turns that are measured."""
TARGET = Target(at_least=1.5)
LEAST_SAME = 0.9
"""Of the critiques that must be the same on both sides, word by word."""
LARGEST_GAP = 1e-3
"""Of the same critique's two scores."""
CASES = {"scenes critic, eager": True, "scenes critic, compiled": False}
"""Whether the engine is eager, as in the preset."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What both sides judge, and with what. One entry of `turns` is a frame of rollout groups."""

    critic: str
    feedback: Any
    engine: Any
    turns: tuple[bytes, ...]

    def groups(self, turn: int) -> list[RolloutGroup]:
        return wire.decode_many(self.turns[turn], RolloutGroup)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a side did in a turn."""

    seconds: float
    verdicts: tuple[tuple[str, float], ...]
    """Text and score of every readable critique, in order."""
    generating: float = 0.0
    """Of the seconds, those before the second pass."""
    groups: int = 0
    """Per call of the engine."""
    batch: int = 0
    """Sequences per forward pass of the second pass."""

    @property
    def speed(self) -> float:
        return len(self.verdicts) / self.seconds


class Ours:
    """A feedback stage with one actor."""

    def __init__(self, work: Work) -> None:
        from actors.stages import FeedbackStage

        self._work = work
        self._stage = FeedbackStage(
            feedback=work.feedback, engine=work.engine, model=work.critic, placements=[whole_machine()]
        )
        self._groups = 0

    def __call__(self, turn: int) -> Judged:
        groups = self._work.groups(turn)
        if not self._groups:
            self._groups = _fastest(TRIED_GROUPS, lambda size: self._judged(groups, size))
        started = time.perf_counter()
        scored = self._judged(groups, self._groups)
        taken = time.perf_counter() - started
        verdicts = _read([verdict for one in scored for verdict in one.verdicts])
        return Judged(seconds=taken, verdicts=verdicts, groups=self._groups)

    def _judged(self, groups: Sequence[RolloutGroup], size: int) -> list[ScoredGroup]:
        """
        Args:
            size: groups per call of the engine.
        """
        self._stage._batch = size
        return list(self._stage.stream(groups))

    def pids(self) -> list[int]:
        """Of the actor."""
        return self._stage.pids()

    def close(self) -> None:
        self._stage.close()


class TwoPasses:
    """Writes critiques with the engine, then scores them with transformers."""

    def __init__(self, work: Work) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from learners.tokens import Processor

        self._work = work
        self._worker = JudgeWorker(feedback=work.feedback, engine=work.engine, model=work.critic)
        self._processor = Processor(Path(work.critic))
        self._model = AutoModelForImageTextToText.from_pretrained(work.critic, dtype=torch.float32).eval()
        self._score = self._processor.token_id(work.feedback.score_token)
        self._pad = self._processor.tokenizer.pad_token_id
        self._groups = self._batch = 0

    def __call__(self, turn: int) -> Judged:
        groups = self._work.groups(turn)
        if not self._batch:
            self._choose(groups)
        started = time.perf_counter()
        critiques = self._critiques(groups, self._groups)
        generating = time.perf_counter() - started
        scores = self._scores(critiques, self._batch)
        taken = time.perf_counter() - started
        verdicts = tuple((one.text.strip(), float(score)) for (_, _, one), score in zip(critiques, scores, strict=True))
        return Judged(seconds=taken, verdicts=verdicts, generating=generating, groups=self._groups, batch=self._batch)

    def _choose(self, groups: Sequence[RolloutGroup]) -> None:
        """The fastest numbers of groups and of sequences."""
        critiques = self._critiques(groups, len(groups))  # pictures are processed here, and not in one of the trials
        self._groups = _fastest(TRIED_GROUPS, lambda size: self._critiques(groups, size))
        self._batch = _fastest(TRIED_BATCHES, lambda size: self._scores(critiques, size))

    def _critiques(self, groups: Sequence[RolloutGroup], size: int) -> list[tuple[Prompt, np.ndarray, Completion]]:
        """The first pass: critiques that came to their end.

        Args:
            size: groups per call of the engine.
        """
        found = []
        for start in range(0, len(groups), size):
            requests = [ask for group in groups[start : start + size] for ask in self._work.feedback.requests(group)]
            # It need not ask the engine for scores.
            unscored = [(prompt, replace(wanted, score_token=None)) for prompt, wanted in requests]
            generations = self._worker._engine.generate(unscored)
            found += [
                (prompt, generation.prompt_token_ids, one)
                for (prompt, _), generation in zip(requests, generations, strict=True)
                for one in generation.completions
                if one.finish_reason == "stop_token"
            ]
        return found

    def _scores(self, critiques: list[tuple[Prompt, np.ndarray, Completion]], batch: int) -> np.ndarray:
        """float32 [number of critiques]."""
        import torch

        order = sorted(range(len(critiques)), key=lambda i: len(critiques[i][1]) + len(critiques[i][2].token_ids))
        scores = np.zeros(len(critiques), np.float32)
        with torch.inference_mode():
            for low in range(0, len(order), batch):
                chosen = order[low : low + batch]
                scores[chosen] = self._forward([critiques[i] for i in chosen])
        return scores

    def _forward(self, critiques: list[tuple[Prompt, np.ndarray, Completion]]) -> np.ndarray:
        import torch

        sequences = [np.concatenate([prompt_ids, one.token_ids[:-1]]) for _, prompt_ids, one in critiques]
        longest = max(map(len, sequences))
        ids = np.full((len(sequences), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            ids[row, longest - len(sequence) :] = sequence
            mask[row, longest - len(sequence) :] = 1
        pictures = [picture.values for prompt, _, _ in critiques for picture in self._processor.images(prompt.images)]
        images = {name: torch.cat([values[name] for values in pictures]) for name in pictures[0]}
        types = torch.from_numpy((ids == self._model.config.image_token_id).astype(np.int64))
        output = self._model(
            input_ids=torch.from_numpy(ids),
            attention_mask=torch.from_numpy(mask),
            mm_token_type_ids=types,
            logits_to_keep=1,
            use_cache=False,
            **images,
        )
        return output.logits[:, -1, self._score].numpy()


def _fastest(tried: Sequence[int], work: Callable[[int], Any]) -> int:
    return min(tried, key=lambda one: min(seconds(lambda: work(one)) for _ in range(TRIALS)))


def _read(verdicts: Sequence[Verdict]) -> tuple[tuple[str, float], ...]:
    return tuple((critique.text, critique.score) for verdict in verdicts for critique in verdict.critiques)


def answers(policy: str, num_turns: int) -> tuple[bytes, ...]:
    """Response groups of the policy, for every turn others."""
    from actors.stages import RolloutStage

    engines.discover()
    stage = RolloutStage(
        engine=engines.engine.make("vllm", max_model_len=512),
        current=lambda: (policy, 0),
        placements=[whole_machine()],
        seed=0,
    )
    plan = Phase(num_prompts=PROMPTS, num_candidates=CANDIDATES, max_tokens=64).plan(0, 0)
    try:
        return tuple(
            wire.encode_many(list(stage.stream([make_prompt("train", i, "describe") for i in indices], plan)))
            for indices in (range(turn * PROMPTS, (turn + 1) * PROMPTS) for turn in range(num_turns))
        )
    finally:
        stage.close()


def measure(case: str, work: Work, repeats: int) -> Row:
    """A line of the table."""
    speeds, ours, theirs = compare(Ours(work), Side(TwoPasses, work), repeats=repeats)
    pairs = [
        pair for one, two in zip(ours, theirs, strict=True) for pair in zip(one.verdicts, two.verdicts, strict=True)
    ]
    same = [a for a in pairs if a[0][0] == a[1][0]]
    if len(same) < LEAST_SAME * len(pairs):
        raise ValueError(f"{case}: {len(same)} of {len(pairs)} critiques are the same on both sides")
    gap = max(abs(a[1] - b[1]) for a, b in same)
    if gap > LARGEST_GAP:
        raise ValueError(f"{case}: scores of the same critique differ by {gap}")
    last = theirs[-1]
    second = statistics.median(1 - turn.generating / turn.seconds for turn in theirs)
    return Row(
        case=case,
        ours=speeds[0],
        other=speeds[1],
        other_name="two passes",
        ratio=speeds[2],
        unit="critiques/s",
        checked=f"{len(same)} of {len(pairs)} critiques are the same, their scores differ by {gap:.1e} at most",
        note=(
            f"the second pass takes {second:.0%} of the time of two: were it left out and nothing else changed, the ratio "
            f"would be {1 / (1 - second):.2f}"
        ),
        extra={
            "share of the second pass": second,
            "groups a call": ours[-1].groups,
            "groups a call, two passes": last.groups,
            "batch of the second pass": last.batch,
            "critiques per turn": len(last.verdicts),
        },
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure."""
    options = parse(__doc__.splitlines()[0], words, cases=CASES, repeats=REPEATS)
    quiet_libraries()
    policy, critic = scenes_models()
    config, _ = configuration.load(["preset=scenes"])
    with cluster(None):
        work = Work(
            critic=str(critic),
            feedback=config.feedback,
            engine=config.critic.engine,
            turns=answers(str(policy), options.repeats + 1),
        )
        modes = [
            measure(case, replace(work, engine=replace(work.engine, enforce_eager=CASES[case])), options.repeats)
            for case in options.cases
        ]
    write(
        "critic",
        "critic: critiques with their scores per second, one pass against two",
        of_the_fastest(modes, TARGET),
        repeats=options.written,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
