"""Critiques with scores per second of the judge's actor, against writing the critiques first and scoring them after.

Ours has critique and score from one pass of the engine: the score is the raw logit of the token that ends the critique.
The other side writes the same critiques with the same engine, and then reads every score from a forward pass of the judge
over prompt, image and critique in transformers: sequences sorted by length, images processed once each, logits of the last
position only, and the fastest of several batch sizes. Both have the same judge, the same responses and all cores. The
engine runs in both of its modes: eager as in the preset, and compiled, which starts later and writes faster. Both sides
ask it about all groups of a turn in one call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import device
from benchmarks.harness import Bound, Options, Row, seconds
from benchmarks.processes import Child, compare, serve_turns
from benchmarks.runs import preset, scenes_models
from rlsys import wire
from rlsys.app.cluster import cluster
from rlsys.records import Completion, Prompt, RolloutGroup
from rlsys.schedules.phases import Phase
from rlsys.worlds.scenes.source import make_prompt

PROMPTS = 96
RESPONSES = 8
TRIED_BATCHES = (16, 32, 64, 128, 256)
"""Sequences per forward pass of the other side."""
TRIALS = 2
"""Trials of each of these before the turns that are measured; the fastest decides."""
LEAST_SAME = 0.9
"""Share of the critiques that must be the same on both sides, word by word."""
LARGEST_GAP = 1e-3
"""Between the two scores of a critique."""
CASES = {"scenes judge, eager": True, "scenes judge, compiled": False}
"""Whether the engine is eager."""


Written = tuple[Prompt, np.ndarray, Completion]
"""What the judge was asked, the token ids of that, and its critique."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What both sides judge, and with what. One entry of `turns` is a frame of rollout groups."""

    judge: str
    feedback: Any
    engine: Any
    turns: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """What a side did in a turn."""

    seconds: float
    critiques: tuple[tuple[str, float], ...]
    """Text and score of every readable critique, in order."""
    generating: float = 0.0
    """The part of the seconds that passed before the second pass began."""
    batch: int = 0
    """Sequences per forward pass of the second pass."""

    @property
    def speed(self) -> float:
        return len(self.critiques) / self.seconds


class Ours:
    """A feedback stage with one actor."""

    def __init__(self, work: Work) -> None:
        from actors.feedback import FeedbackStage
        from actors.roles import EngineRole

        self._work = work
        judge = EngineRole("judge", engine=work.engine, model=work.judge, placements=[device.place()], raw_logits=True)
        self._stage = FeedbackStage(feedback=work.feedback, roles={"judge": judge}, own=[judge], batch=PROMPTS)
        self.pids, self.close = judge.pids, judge.close

    def __call__(self, turn: int) -> Judged:
        groups = wire.decode_many(self._work.turns[turn], RolloutGroup)
        began = time.perf_counter()
        scored = list(self._stage.stream(groups))
        taken = time.perf_counter() - began
        # Responses of the same text have been judged once, and have the same verdict.
        distinct = [
            {response.text: verdict for response, verdict in zip(one.group.responses, one.verdicts, strict=True)}
            for one in scored
        ]
        found = [critique for own in distinct for verdict in own.values() for critique in verdict.critiques]
        return Judged(seconds=taken, critiques=tuple((one.text, one.score) for one in found if one.score is not None))


class TwoPasses:
    """Writes critiques with the engine, then scores them with transformers."""

    def __init__(self, work: Work) -> None:
        import torch
        from transformers import AutoModelForImageTextToText

        from learners.tokens import Processor

        self._work = work
        self._engine = work.engine.open(work.judge, raw_logits=True)
        self._processor = Processor(Path(work.judge))
        model = AutoModelForImageTextToText.from_pretrained(work.judge, dtype=torch.float32)
        self._model = model.to(device.name()).eval()
        self._score = self._processor.token_id(work.feedback.score_token)
        self._batch = 0

    def __call__(self, turn: int) -> Judged:
        groups = wire.decode_many(self._work.turns[turn], RolloutGroup)
        if not self._batch:
            critiques = self._critiques(groups)
            self._scores(critiques, len(critiques))  # images are processed here, and not in a trial
            self._batch = min(TRIED_BATCHES, key=lambda size: self._trial(critiques, size))
        began = time.perf_counter()
        critiques = self._critiques(groups)
        generating = time.perf_counter() - began
        scores = self._scores(critiques, self._batch)
        taken = time.perf_counter() - began
        found = tuple((one.text.strip(), float(score)) for (_, _, one), score in zip(critiques, scores, strict=True))
        return Judged(seconds=taken, critiques=found, generating=generating, batch=self._batch)

    def _trial(self, critiques: list[Written], size: int) -> float:
        return min(seconds(lambda: self._scores(critiques, size)) for _ in range(TRIALS))

    def _critiques(self, groups: Sequence[RolloutGroup]) -> list[Written]:
        """The first pass: critiques that came to their end."""
        asks = [ask for group in groups for ask in next(self._work.feedback.judge(group))]
        # It need not ask the engine for scores.
        unscored = [(ask.prompt, replace(ask.sampling, score_token=None)) for ask in asks]
        return [
            (ask.prompt, generation.prompt_token_ids, one)
            for ask, generation in zip(asks, self._engine.generate(unscored), strict=True)
            for one in generation.completions
            if one.finish_reason == "stop_token"
        ]

    def _scores(self, critiques: list[Written], batch: int) -> np.ndarray:
        """float32 [number of critiques]."""
        import torch

        order = sorted(range(len(critiques)), key=lambda i: len(critiques[i][1]) + len(critiques[i][2].token_ids))
        scores = np.zeros(len(critiques), np.float32)
        with torch.inference_mode():
            for low in range(0, len(order), batch):
                chosen = order[low : low + batch]
                scores[chosen] = self._forward([critiques[i] for i in chosen])
        return scores

    def _forward(self, critiques: list[Written]) -> np.ndarray:
        sequences = [np.concatenate([prompt_ids, one.token_ids[:-1]]) for _, prompt_ids, one in critiques]
        inputs = padded(self._processor, self._model, [prompt for prompt, _, _ in critiques], sequences)
        return self._model(logits_to_keep=1, use_cache=False, **inputs).logits[:, -1, self._score].cpu().numpy()


def padded(processor: Any, model: Any, prompts: Sequence[Prompt], sequences: Sequence[np.ndarray]) -> dict[str, Any]:
    """A judge's inputs in transformers, on its device.

    Args:
        sequences: token ids that begin with those of the prompts; padded at their left.
    """
    import torch

    longest = max(map(len, sequences))
    ids = np.full((len(sequences), longest), processor.tokenizer.pad_token_id, np.int64)
    mask = np.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, longest - len(sequence) :] = sequence
        mask[row, longest - len(sequence) :] = 1
    found = [image.values for prompt in prompts for image in processor.images(prompt.images)]
    inputs = {name: torch.cat([values[name] for values in found]) for name in found[0]}
    inputs["input_ids"], inputs["attention_mask"] = torch.from_numpy(ids), torch.from_numpy(mask)
    inputs["mm_token_type_ids"] = (inputs["input_ids"] == model.config.image_token_id).long()
    return {name: value.to(model.device) for name, value in inputs.items()}


def responses(policy: Path, num_turns: int) -> tuple[bytes, ...]:
    """Rollout groups of the policy, for every turn others."""
    from actors.stages import RolloutStage

    stage = RolloutStage(
        engine=device.engine(max_model_len=512),
        current=lambda: (str(policy), 0),
        placements=[device.place()],
        seed=0,
    )
    plan = Phase(num_prompts=PROMPTS, num_candidates=RESPONSES, max_tokens=64).plan(0, 0)
    prompts = [make_prompt("train", index, "describe") for index in range(num_turns * PROMPTS)]
    with closing(stage):
        groups = list(stage.stream(prompts, plan))
    return tuple(wire.encode_many(groups[i : i + PROMPTS]) for i in range(0, len(groups), PROMPTS))


def measure(case: str, work: Work, repeats: int) -> Row:
    """A line of the table.

    Raises:
        ValueError: the two sides did not write the same critiques, or scored them differently.
    """
    speeds, ours, theirs = compare(Ours(work), Child(serve_turns, TwoPasses, work), repeats=repeats)
    turns = zip(ours, theirs, strict=True)
    pairs = [pair for one, two in turns for pair in zip(one.critiques, two.critiques, strict=True)]
    same = [(mine, other) for mine, other in pairs if mine[0] == other[0]]
    if len(same) < LEAST_SAME * len(pairs):
        raise ValueError(f"{case}: {len(same)} of {len(pairs)} critiques are the same on both sides")
    gap = max(abs(mine[1] - other[1]) for mine, other in same)
    if gap > LARGEST_GAP:
        raise ValueError(f"{case}: scores of the same critique differ by {gap}")
    second = statistics.median(1 - turn.generating / turn.seconds for turn in theirs)
    return Row.versus(
        speeds,
        case=case,
        other_name="two passes",
        unit="critiques/s",
        bound=Bound(ratio=1 / (1 - second), why="the second pass, left out, with nothing else changed"),
        checked=f"{len(same)} of {len(pairs)} critiques are the same, their scores differ by {gap:.1e} at most",
        extra={
            "share of the second pass": second,
            "critiques per turn": len(theirs[-1].critiques),
            "batch of the second pass": theirs[-1].batch,
        },
    )


def cases(options: Options) -> list[str]:
    """Names of all cases."""
    return list(CASES)


def rows(options: Options) -> Iterator[Row]:
    """Measure."""
    policy, judge = scenes_models()
    config, repeats = preset([]), options.repeats
    with cluster(None):
        # In float32 on a GPU too: scores of the two sides are compared.
        engine = replace(config.engines["judge"].engine, dtype="float32")
        turns = responses(policy, repeats + 1)
        work = Work(judge=str(judge), feedback=config.feedback, engine=engine, turns=turns)
        for case, eager in CASES.items():
            if options.wants(case):
                yield measure(case, replace(work, engine=replace(engine, enforce_eager=eager)), repeats)
