"""Pairs per second of whole optimizer steps, and their memory, against TRL's DPOTrainer at its best settings.

Ours is a learner's rank as a run has it: wire frames decoded, records collated, pictures processed, reference checked,
forward, backward, DeepSpeed's AdamW. TRL's is its own training loop, without gradient checkpointing, with whichever
number of pairs per forward pass and of loader processes is fastest, compiled (`torch_compile`) if that is faster still
(by the median of turns that come before, the fastest two settings in two trials), and pictures at hand in memory; its
loader stands still in our turns. Same weights, same pairs in the same order (a turn in which TRL compiles is done again
on the next), same precision, two threads each, every picture new in every turn. Cases with a target are measured in
bfloat16 too where the cores multiply in it; both sides then keep weights and moments in float32: ours casts the weights
once a step, TRL (autocast) wherever they are used.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import cpu
from benchmarks.arguments import parse
from benchmarks.harness import Row, Target, in_turn, table, write
from benchmarks.learner_sides import CHECKED_STEPS, WARMUP, Job, serve_ours
from benchmarks.learner_trl import serve_trl
from benchmarks.learner_work import Work
from benchmarks.models import SMALL
from benchmarks.processes import JobSide
from benchmarks.trl_turns import ALLOCATOR

LARGEST_DIFFERENCE = {"fp32": 5e-5, "bf16": 5e-3}
"""Of losses and gradients: an answer of 400 tokens has a log-probability of -1800 nats, which float32 rounds by 1e-4. In
bfloat16 TRL's are up to 1e-3 from its own in float32.
"""
LARGEST_DETOUR = {"fp32": 0.01, "bf16": 0.15}
"""Of the weights, as a share of the way that they went: where a gradient is almost nothing, its sign is chance. In bfloat16
TRL's are 0.08 from its own in float32.
"""
PROFILED = 1
"""Turns of ours after those that count."""
_LONG = {"model": SMALL, "batch": 8, "steps": 1, "tried_sizes": (2, 4, 8)}
SCENES = Work(name="scenes' shape, vision tower trained")
"""A pair to a prompt, with answers as long as those of the scenes world."""
SCENES_ROUNDS = replace(SCENES, name="scenes' rounds: 8 answers, up to 6 pairs a prompt", answers=8, pairs_per_prompt=6)
"""What preset `scenes` hands its learner."""
_IN_FLOAT32: tuple[tuple[Work, Target | None], ...] = (
    (SCENES, Target(at_least=3.0)),
    (replace(SCENES, name="scenes' shape, vision tower frozen", frozen_vision=True), Target(at_least=4.0)),
    (SCENES_ROUNDS, Target(at_least=3.0)),
    (
        replace(SCENES_ROUNDS, name=SCENES_ROUNDS.name + ", vision tower frozen", frozen_vision=True),
        Target(at_least=4.0),
    ),
    (
        Work(name="long prompt: 1000 + 100 tokens", picture=24, prompt_words=415, answer_tokens=(100, 100), **_LONG),
        Target(at_least=2.4),
    ),
    (
        Work(name="long answer: 100 + 400 tokens", picture=6, prompt_words=55, answer_tokens=(400, 400), **_LONG),
        Target(at_least=1.5),
    ),
    (
        Work(
            name="long answer, text alone: 100 + 400 tokens",
            picture=None,
            prompt_words=93,
            answer_tokens=(400, 400),
            **_LONG,
        ),
        None,
    ),
)
_BF16 = ", bf16"
_IN_BFLOAT16 = tuple(
    (replace(work, name=work.name + _BF16, precision="bf16"), target)
    for work, target in _IN_FLOAT32
    if target is not None
)
_WITHOUT_BFLOAT16 = ", in float32: these cores do not multiply in bfloat16"
MEMORY = replace(
    SCENES, name="memory of a step of 32 pairs, vocabulary of 150 000", vocabulary=150_000, steps=1, tried_sizes=(32,)
)
MEMORY_TARGET = Target(at_most=0.5)
NOTE = (
    "The reference log-probabilities of ours are recorded while answers are sampled, as in a round, and checked on 8 "
    "answers in each turn; TRL computes them {where}. " + ALLOCATOR
)
_IN_LOOP, _BEFORE = "in every step, as its vision path has to", "before training (precompute_ref_log_probs), uncounted"


@contextmanager
def sides() -> Iterator[tuple[JobSide, JobSide]]:
    """Our process and TRL's."""
    with closing(JobSide(serve_ours)) as ours, closing(JobSide(serve_trl)) as theirs:
        yield ours, theirs


def speed(ours: JobSide, theirs: JobSide, work: Work, target: Target | None, repeats: int) -> Row:
    """Pairs per second of both sides."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(work=work, checkpoint=work.make_checkpoint(Path(folder)), num_turns=WARMUP + repeats + PROFILED)
        flops = work.flop_ratios(work.make_pairs(work.pairs_per_turn, job.checkpoint))
        ours.begin(job)
        tuned = theirs.begin(job)
        checked = _check(ours, theirs, work)
        ours_speed, their_speed, ratio = in_turn(
            lambda: work.pairs_per_turn / ours.ask("turn"),
            lambda: work.pairs_per_turn / theirs.ask("turn"),
            repeats=repeats,
            warmup=WARMUP,
        )
        missed = target is not None and not target.met(ratio.median)
        why = _why(ours.ask("profile")) if missed else ""
        ours.end()
        theirs.end()
    where = _BEFORE if work.picture is None else _IN_LOOP
    return Row(
        case=work.name,
        ours=ours_speed,
        other=their_speed,
        other_name="TRL",
        ratio=ratio,
        unit="pairs/s",
        target=target,
        checked=checked,
        note=f"{why} {NOTE.format(where=where)} TRL's settings tried: {tuned}.".strip(),
        extra=flops,
    )


def _why(shares: dict[str, float]) -> str:
    """Where the time of our side goes, by a profile.

    Args:
        shares: of the time of its operations.
    """
    largest = ", ".join(f"{name} {share:.0%}" for name, share in shares.items())
    return f"Time in operations of ours, in a profiled turn: {largest}."


def memory(ours: JobSide, theirs: JobSide, work: Work, target: Target, repeats: int) -> Row:
    """Most bytes resident during a step, above those resident before it."""
    with tempfile.TemporaryDirectory() as folder:
        job = Job(work=work, checkpoint=work.make_checkpoint(Path(folder)), num_turns=WARMUP + repeats)
        ours.begin(job)
        theirs.begin(job)
        checked = _check(ours, theirs, work)
        ours_peak, their_peak, ratio = in_turn(
            lambda: ours.ask("peak") / (1 << 20),
            lambda: theirs.ask("peak") / (1 << 20),
            repeats=repeats,
            warmup=WARMUP,
        )
    return Row(
        case=work.name,
        ours=ours_peak,
        other=their_peak,
        other_name="TRL",
        ratio=ratio,
        unit="MiB",
        target=target,
        checked=checked,
        note="Largest resident set during a step less that before it, each side in its own process; weights and AdamW's "
        "moments are there before the step on both sides, gradients are not. One forward pass for the whole batch.",
    )


def _check(ours: JobSide, theirs: JobSide, work: Work) -> str:
    """Both sides' first steps are the same.

    Raises:
        ValueError: they are not.
    """
    found: dict[str, Any] = ours.ask("trace").differences(theirs.ask("trace"))
    if max(found["loss"], found["gradients"]) > LARGEST_DIFFERENCE[work.precision] or (
        found["weights"] > LARGEST_DETOUR[work.precision]
    ):
        raise ValueError(f"the two sides do not do the same: {found}")
    return (
        f"Largest differences over {CHECKED_STEPS} steps: loss {found['loss']:.1e}, first gradient "
        f"{found['gradients']:.1e} (its largest entry is {found['largest gradient']:.1e}); the weights end "
        f"{found['weights']:.1e} of their way apart."
    )


def _add_float32(rows: Sequence[Row]) -> None:
    """To a case in bfloat16 just measured, the speed of TRL in float32, which may be faster."""
    last = rows[-1]
    for row in rows:
        if last.case == row.case + _BF16:
            last.extra["TRL in float32, in turns of its own, pairs/s"] = row.other.median


def main(words: Sequence[str] | None = None) -> None:
    """Measure all cases."""
    in_bf16 = cpu.multiplies_in_bf16()
    works = _IN_FLOAT32 + (_IN_BFLOAT16 if in_bf16 else ())
    options = parse(__doc__.splitlines()[0], words, cases=[*(work.name for work, _ in works), MEMORY.name])
    rows = []
    with sides() as both:
        for work, target in works:
            if work.name in options.cases:
                rows.append(speed(*both, work, target, options.repeats))
                _add_float32(rows)
                print(table("measured:", rows[-1:]), flush=True)
    if MEMORY.name in options.cases:
        with sides() as both:  # processes that hold nothing of other cases
            rows.append(memory(*both, MEMORY, MEMORY_TARGET, options.repeats))
    title = "Learner: pairs per second" + ("" if in_bf16 else _WITHOUT_BFLOAT16)
    write("learner", title, rows, repeats=options.written)


if __name__ == "__main__":
    main(sys.argv[1:])
