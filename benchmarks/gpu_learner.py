"""Learner on one GPU: its share of the matrix rate, and pairs per second against TRL's DPOTrainer.

    python -m benchmarks.gpu_learner

Full fine-tuning of policies with the shape of Qwen2.5-VL and random weights, in bfloat16 with float32 master weights:
a picture and a long prompt with two long answers, 4 k tokens as one tree. FLOPs are counted as 6 per weight and token
(the head for answers' tokens only) and 12 per attended pair, hidden unit and layer; what is recomputed is not counted.
TRL runs the same pairs in bfloat16 autocast over float32 weights, and is not tried compiled; the two do not fit the GPU at
once and run one after the other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks import sides
from benchmarks.gpu_learner_trl import TRIED, Setting, serve_trl
from benchmarks.gpu_setup import QWEN_3B, QWEN_7B, TINY, Qwen, make_model, matrix_rate, on_gpu, options, synchronized
from benchmarks.harness import Row, Spread, Target, table, write
from benchmarks.learner_sides import BETA, TIMED_LR, WARMUP, Job, open_learner, recorded
from benchmarks.learner_work import Work
from benchmarks.processes import JobSide
from benchmarks.tables import ON_GPU
from benchmarks.trl_turns import Tuned
from rlsys.records import PreferencePair

TARGET = ON_GPU["gpu_learner"].target
SETTINGS = tuple(Setting(recompute=r, size=size) for r, size in ((False, 1), (False, 2), (True, 2), (True, 4)))
"""Of ours, to be tried; a pair is a tree."""
LARGEST_LOSS_GAP = 0.005
"""Of a mean loss of ln 2."""
LARGEST_GRADIENT_GAP = 0.1
"""Of the gradient's norm, as a share: in bfloat16, pass by pass and pair by pair, sums come out otherwise."""


@dataclass(frozen=True, kw_only=True)
class QwenWork(Work):
    """Pairs for a Qwen2.5-VL of random weights."""

    shape: Qwen = TINY
    precision: str = "bf16"

    def make_checkpoint(self, directory: Path) -> Path:
        """As `make_model`."""
        return make_model(directory, self.shape)

    @property
    def tokens(self) -> int:
        """Of one tree, near enough: the prompt's words, its picture, and both answers."""
        return (self.prompt_words or 0) + (self.picture or 0) ** 2 + sum(self.answer_tokens)

    def flops(self, pairs: Sequence[PreferencePair]) -> float:
        """Of one training pass over the pairs, a tree each."""
        shape, found = self.shape, 0.0
        for pair in pairs:
            prompt = len(pair.prompt_token_ids)
            answers = [len(rollout.token_ids) for rollout in (pair.chosen, pair.rejected)]
            attended = prompt * (prompt + 1) / 2 + sum(prompt * size + size * (size + 1) / 2 for size in answers)
            found += 6.0 * shape.layer_weights * (prompt + sum(answers)) + 6.0 * shape.head_weights * sum(answers)
            found += 12.0 * shape.hidden * shape.layers * attended
            found += 6.0 * shape.vision_weights * 4 * (self.picture or 0) ** 2
        return found


LONG = {"picture": 16, "prompt_words": 780, "answer_tokens": (1500, 1500), "batch": 8, "steps": 1}
CASES = (
    QwenWork(name="Qwen2.5-VL-3B, whole", shape=QWEN_3B, **LONG),
    QwenWork(name="Qwen2.5-VL-7B's layers, 14 of 28", shape=replace(QWEN_7B, layers=14), **LONG),
)
CUT = (
    "All 28 layers do not fit one GPU of 141 GB for full fine-tuning: 8.3 G weights at 2 bytes, their gradients at 2 and "
    "4, master weights and moments at 12 are 166 GB. "
)
TINY_CASES = (
    QwenWork(
        name="tiny", shape=TINY, precision="fp32", picture=2, prompt_words=8, answer_tokens=(12, 12), batch=4, steps=1
    ),
)


def open_ours(work: QwenWork, folder: str, num_turns: int, setting: Setting) -> sides.Turn:
    """Our side: seconds of a turn's steps, and the matrix rate right after them."""
    import torch

    from learners.plan import FitPlan
    from rlsys import wire

    learner = open_learner(
        Path(folder),
        batch_size=work.batch,
        precision=work.precision,
        micro_batch_tokens=int(setting.size * (work.tokens + 64)),
        activation_checkpointing=setting.recompute,
    )
    pairs = recorded(learner, work.make_pairs(work.pairs_per_turn * num_turns, Path(folder)), at_once=2)
    size = work.batch
    frames = [wire.encode_many(pairs[start : start + size]) for start in range(0, len(pairs), size)]

    def turn(number: int) -> dict[str, float]:
        mine = frames[number * work.steps : (number + 1) * work.steps]

        outputs = []

        def steps() -> None:
            learner.begin(FitPlan(lr=TIMED_LR, beta=BETA))
            for place, frame in enumerate(mine):
                outputs.append(learner.step(frame, lr=TIMED_LR, batch=place))

        first = number * work.pairs_per_turn
        seconds = synchronized(steps)
        return {
            "seconds": seconds,
            "loss": outputs[0].sums["loss"] / outputs[0].denominator,
            "grad_norm": outputs[0].grad_norm,
            "flops": work.flops(pairs[first : first + work.pairs_per_turn]),
            "tokens": float(sum(_tokens(pair) for pair in pairs[first : first + work.pairs_per_turn])),
            "matrix": matrix_rate(),
            "gb": torch.cuda.max_memory_allocated() / 1e9 if on_gpu() else 0.0,
        }

    return turn


def _tokens(pair: PreferencePair) -> int:
    return len(pair.prompt_token_ids) + len(pair.chosen.token_ids) + len(pair.rejected.token_ids)


def ours(work: QwenWork, folder: Path, repeats: int) -> tuple[list[dict[str, float]], Tuned]:
    """All turns with the fastest setting, and what the others reached.

    Raises:
        MemoryError: none fits the GPU.
    """
    tried: dict[Setting, float] = {}
    for setting in SETTINGS if on_gpu() else SETTINGS[:1]:
        with suppress(MemoryError), closing(sides.Side(open_ours, work, str(folder), 2, setting)) as side:
            tried[setting] = work.pairs_per_turn / [side(number) for number in range(2)][-1]["seconds"]
    if not tried:
        raise MemoryError(f"{work.name} fits this GPU with none of our settings: {'; '.join(map(str, SETTINGS))}")
    best = max(tried, key=tried.__getitem__)
    with closing(sides.Side(open_ours, work, str(folder), WARMUP + repeats, best)) as side:
        turns = [side(number) for number in range(WARMUP + repeats)]
    return turns, Tuned(best=best, speeds=tried)


def measure(work: QwenWork, target: Target | None, repeats: int) -> list[Row]:
    """Both rows of a case; the first alone if TRL does not fit the GPU."""
    with tempfile.TemporaryDirectory(prefix="rlsys-gpu-") as scratch:
        folder = work.make_checkpoint(Path(scratch))
        all_turns, tried = ours(work, folder, repeats)
        with closing(JobSide(serve_trl)) as theirs:
            found = theirs.begin(Job(work=work, checkpoint=folder, num_turns=WARMUP + repeats))
            theirs.end()
    turns, their_seconds = all_turns[WARMUP:], found["seconds"][WARMUP:]
    rates = [turn["flops"] / turn["seconds"] / 1e12 for turn in turns]
    matrix = [turn["matrix"] / 1e12 for turn in turns]
    speeds = [work.pairs_per_turn / turn["seconds"] for turn in turns]
    their_speeds = [work.pairs_per_turn / seconds for seconds in their_seconds]
    tokens = [turn["tokens"] / turn["seconds"] for turn in turns]
    cut = CUT if work.shape.layers == 14 else ""
    unfit = "" if their_speeds else f" TRL fits this GPU with none of its settings: {'; '.join(map(str, TRIED))}."
    rows = [
        Row(
            case=f"{work.name}: share of the matrix rate",
            ours=Spread.of(rates),
            other=Spread.of(matrix),
            other_name="bfloat16 product",
            ratio=Spread.of([a / b for a, b in zip(rates, matrix, strict=True)]),
            unit="TFLOP/s",
            target=target,
            note=f"{cut}Pairs/s of what was tried: {tried}.{unfit}",
            extra={
                "tokens/s": Spread.of(tokens).median,
                "tokens a tree": turns[0]["tokens"] / work.pairs_per_turn,
                "largest memory GB": turns[-1]["gb"],
            },
        ),
    ]
    if their_speeds:
        rows.append(
            Row(
                case=f"{work.name}: pairs per second",
                ours=Spread.of(speeds),
                other=Spread.of(their_speeds),
                other_name="TRL",
                ratio=Spread.of([a / b for a, b in zip(speeds, their_speeds, strict=True)]),
                unit="pairs/s",
                checked=_check(all_turns[0], found["first"]),
                note=f"TRL's settings tried: {found['tuned']}. One side after the other.",
            )
        )
    return rows


def _check(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Loss and gradient of both sides' first step are the same, as far as bfloat16 has them.

    Raises:
        ValueError: they are not.
    """
    norms = ours["grad_norm"], theirs["grad_norm"]
    if abs(ours["loss"] - theirs["loss"]) > LARGEST_LOSS_GAP or abs(norms[0] / norms[1] - 1) > LARGEST_GRADIENT_GAP:
        raise ValueError(f"the two sides do not do the same in their first step: {ours}, {theirs}")
    return (
        f"in the first step a loss of {ours['loss']:.4f}, TRL's {theirs['loss']:.4f}, and a gradient of norm {norms[0]:.4g}, "
        f"TRL's {norms[1]:.4g}"
    )


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    given = options(__doc__, words, cases=lambda tiny: (work.name for work in (TINY_CASES if tiny else CASES)))
    if given is None:
        return 0
    rows: list[Row] = []
    for work in TINY_CASES if given.tiny else CASES:
        if work.name in given.cases:
            try:
                found = measure(work, None if given.tiny else TARGET, given.repeats)
            except MemoryError as error:  # a smaller GPU; the other cases count all the same
                print(f"not measured: {error}", flush=True)
                continue
            rows += found
            print(table("measured:", found), flush=True)
    write("gpu_learner", "Learner on one GPU, 4 k tokens a tree", rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
