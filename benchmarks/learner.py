"""Pairs per second of whole optimizer steps, and their memory, against TRL's DPOTrainer at its best settings.

Ours is a learner's rank as a run has it: wire frames decoded, records collated, images processed, reference checked,
forward, backward, DeepSpeed's AdamW. TRL's is its own training loop with the fastest of the settings that were tried, and
images at hand in memory; its loader stands still in our turns. Both have the same weights, the same pairs in the same
order (a turn in which TRL compiles is done again on the next pairs), the same precision and two threads; every image is new
in every turn. In bfloat16 both sides keep weights and moments in float32.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import device
from benchmarks.harness import Options, Row, Target, in_turn
from benchmarks.learner_ours import CHECKED_STEPS, WARMUP, Job, Trace, serve_ours
from benchmarks.learner_trl import serve_trl
from benchmarks.learner_work import SMALL, Work
from benchmarks.processes import Child
from benchmarks.trl import ALLOCATOR

MEMORY_REPEATS = 3
LARGEST_DIFFERENCE = {"fp32": 5e-5, "bf16": 5e-3}
"""Largest difference of losses and gradients between both learners. A response of 400 tokens has a logprob of -1800 nats, which
float32 rounds by 1e-4. In bfloat16 TRL's values are up to 1e-3 from its own in float32.
"""
LARGEST_DETOUR = {"fp32": 0.01, "bf16": 0.15}
"""Largest difference of the trained weights, as a share of the distance that training moved them. Where a gradient is almost
zero, its sign is chance. In bfloat16 TRL's weights are 0.08 from its own in float32.
"""
_SCENES = Work(name="scenes' shape, vision tower trained")
"""A pair to a prompt, with responses as long as those of the scenes world."""
_LONG = {"model": SMALL, "batch": 8, "steps": 1}
CASES: tuple[tuple[Work, Target], ...] = (
    (_SCENES, Target(at_least=3.0)),
    (replace(_SCENES, name="scenes' shape, vision tower frozen", frozen_vision=True), Target(at_least=4.0)),
    (
        # What preset `scenes` hands its learner.
        replace(_SCENES, name="8 responses, up to 6 pairs a prompt", responses=8, pairs_per_prompt=6),
        Target(at_least=3.0),
    ),
    (
        Work(
            name="long prompt: 1000 + 100 tokens",
            cells=24,
            prompt_words=415,
            response_tokens=(100, 100),
            tried_sizes=(2, 4),
            **_LONG,
        ),
        Target(at_least=2.4),
    ),
    (
        Work(
            name="long response: 100 + 400 tokens",
            cells=6,
            prompt_words=55,
            response_tokens=(400, 400),
            tried_sizes=(2, 8),
            **_LONG,
        ),
        Target(at_least=1.5),
    ),
)
MEMORY = replace(
    _SCENES, name="memory of a step of 32 pairs, vocabulary of 150 000", vocabulary=150_000, steps=1, tried_sizes=(32,)
)
MEMORY_TARGET = Target(at_most=0.5)
NOTE = (
    "The reference logprobs of ours are recorded while responses are sampled, as in a round, and checked on 8 responses in "
    "each turn; TRL computes them in every step, as its vision path has to. " + ALLOCATOR
)
MEMORY_NOTE = (
    f"{MEMORY_REPEATS} turns; the largest resident set during a step less that before it, each side in its own process. "
    "Weights and AdamW's moments are there before the step on both sides, gradients are not. One forward pass for the batch."
)


def compare(work: Work, repeats: int, question: str, read: Callable[[float], float], **more: Any) -> Row:
    """The row of both sides in turn.

    Args:
        question: what a side is asked in a turn.
        read: makes a figure of its answer.
        more: of the row.
    """
    with tempfile.TemporaryDirectory(prefix="rlsys-learner-") as folder:
        job = Job(work=work, checkpoint=work.make_checkpoint(Path(folder)), num_turns=WARMUP + repeats)
        with closing(Child(serve_ours, job)) as ours:
            ours.first()  # it stands still while TRL's settings are tried
            with closing(Child(serve_trl, job)) as theirs:
                tuned = theirs.first()
                checked = check(ours.say("trace"), theirs.say("trace"))
                figures = in_turn(
                    lambda: read(ours.say(question)), lambda: read(theirs.say(question)), repeats=repeats, warmup=WARMUP
                )
    checked = f"{checked} TRL's settings tried: {tuned}."
    return Row.versus(figures, case=work.name, other_name="TRL", checked=checked, **more)


def check(ours: Trace, theirs: Trace) -> str:
    """Both sides' first steps are the same.

    Raises:
        ValueError: they are not.
    """
    found, precision = ours.differences(theirs), device.precision()
    if max(found["loss"], found["gradients"]) > LARGEST_DIFFERENCE[precision] or (
        found["weights"] > LARGEST_DETOUR[precision]
    ):
        raise ValueError(f"the two sides do not do the same: {found}")
    return (
        f"Largest differences over {CHECKED_STEPS} steps: loss {found['loss']:.1e}, first gradient "
        f"{found['gradients']:.1e} (its largest entry is {found['largest gradient']:.1e}); the weights end "
        f"{found['weights']:.1e} of their way apart."
    )


def cases(options: Options) -> list[str]:
    """Names of all cases; memory is measured on cores alone."""
    return [*(work.name for work, _ in CASES), *([] if options.device == "gpu" else [MEMORY.name])]


def rows(options: Options) -> Iterator[Row]:
    """Measure pairs per second, then the most bytes resident during a step above those before it."""
    repeats = options.repeats
    for work, target in CASES:
        if options.wants(work.name):
            given = {"unit": "pairs/s", "target": target, "note": NOTE}
            yield compare(work, repeats, "turn", lambda seconds, work=work: work.pairs_per_turn / seconds, **given)
    if MEMORY.name in cases(options) and options.wants(MEMORY.name):
        given = {"unit": "MiB", "target": MEMORY_TARGET, "note": MEMORY_NOTE}
        yield compare(MEMORY, min(MEMORY_REPEATS, repeats), "peak", lambda num_bytes: num_bytes / (1 << 20), **given)
