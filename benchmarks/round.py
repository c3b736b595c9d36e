"""Pairs per second of whole online rounds, two responses to a prompt, against TRL's OnlineDPOTrainer.

Ours is the loop as a run has it (`rlsys.rounds.run_rounds` at staleness 0): responses by vLLM, rewards, pairs, journal,
optimizer steps, checkpoint, weight update with its proof. TRL's is its own training loop with the way to answer that
shows images to the policy (transformers' `generate`), without gradient checkpointing, with the fastest number of prompts
per step, compiled if that is faster. Both have the same policy, prompts, rewards and loss (sigmoid DPO, beta 0.1); a turn is
two rounds of ours and one of TRL's. The rewards are the world's truth, or, in the main job, come from a judge that writes
critiques: by an engine on our side, by `generate` on TRL's.
"""

from __future__ import annotations

import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from benchmarks import device
from benchmarks.harness import Bound, Options, Row, Target
from benchmarks.processes import Child, compare
from benchmarks.round_ours import Job, Ours, Turn
from benchmarks.round_trl import serve_trl
from benchmarks.runs import scenes_models
from benchmarks.trl import ALLOCATOR
from rlsys.placement.machine import this_machine
from rlsys.worlds.scenes.policy import Shape, make_policy

LARGE = Shape(hidden=512, layers=16, mlp=1536)
"""50 million parameters."""
TWO_CORES = (
    "rollout.num_actors=2",
    "rollout.engine.enforce_eager=false",
    "learner.num_ranks=2",
    "learner.kl_responses=16",
)
"""Our side at its best: processes of one thread share two cores, so that neither core waits for the other's stage. Of rounds
this small the default would pass half of the responses through the policy once more for an estimate that TRL does not make.
"""
UNJUDGED = (*TWO_CORES, "rollout.cores=0.5", "learner.cores=0.5")
JUDGED = (
    *TWO_CORES,
    "engines.judge.num_actors=2",
    "engines.judge.engine.enforce_eager=false",
    *(f"{role}.cores=0.3" for role in ("rollout", "engines.judge", "learner")),
)
GPU_TARGET = Target(at_least=5.0)
LARGEST_LOSS_GAP = 0.005
"""Largest distance of the mean loss from ln 2. It is not zero, because two bfloat16 passes over a response differ."""
LARGEST_LOGPROB_GAP = 0.2
"""Nats of a token, in the mean. Both sides sample their own responses, and TRL's policy reads images at other positions; one
that did not see them, or sampled otherwise, would be further off.
"""
LARGEST_SCORE_GAP = 0.25
"""Between the mean scores of both sides, in standard deviations of our scores."""
MOST_APART = {True: 0.01, False: 0.15}
"""By how much pairs a round, and tokens a response, may differ, as a share, where all responses are full, and where not."""
CASES = {
    "scenes, 64-token responses": Job(folder="scenes", num_prompts=256, batch=64, tried=(32, 64, 128), words=UNJUDGED),
    "main job: scenes with a judge that writes": Job(
        folder="scenes", judge="judge", num_prompts=128, full=False, batch=64, tried=(64, 128), words=JUDGED
    ),
    "50 M parameters": Job(folder="large", num_prompts=32, batch=32, tried=(16,), words=UNJUDGED),
}
"""Pairs per optimizer step are those with which each side is fastest; `folder` and `judge` name models."""
NOTE = (
    "Ours takes the recorded logprobs of the responses as reference and checks 8 of them a round; TRL's reference is a "
    "second model that it asks in every step. TRL does not hand on the kinds of tokens, so that its policy reads images at "
    f"the positions of text, which costs the same. {ALLOCATOR}"
)


def measure(case: str, job: Job, repeats: int) -> Row:
    """The row of one case."""
    theirs = Child(serve_trl, job)
    tuned = theirs.first()  # then it stands still while our side starts
    settings = f"Ours trains {job.batch} pairs a step; pairs/s of TRL's steps by prompts a step: {tuned}"
    speeds, *done = compare(Ours(job), theirs, repeats=repeats)
    counted = {"ours": done[0][1:], "TRL": done[1][1:]}
    return Row.versus(
        speeds,
        case=case,
        other_name="TRL",
        unit="pairs/s",
        target=GPU_TARGET if device.on_gpu() else None,
        bound=None if device.on_gpu() else bound(counted, num_cores=this_machine().num_cpus),
        checked=f"{check(job, counted)}. {settings}",
        note=NOTE,
        extra={
            **_stages("ours", counted["ours"]),
            **_stages("TRL", counted["TRL"]),
            "prompts a round": float(job.num_prompts),
        },
    )


def bound(done: dict[str, list[Turn]], *, num_cores: float) -> Bound:
    """The ratio at which our processes would keep all cores busy all the time, with the CPU time that they take now."""
    busy = {name: statistics.median(turn.cores[name] for turn in done["ours"]) for name in done["ours"][0].cores}
    ratio = statistics.median(turn.speed for turn in done["ours"]) / statistics.median(
        turn.speed for turn in done["TRL"]
    )
    shares = ", ".join(f"{name} {number / num_cores:.0%}" for name, number in busy.items())
    why = f"both cores busy all the time with what our stages compute ({shares} of their time now)"
    return Bound(ratio=ratio * num_cores / sum(busy.values()), why=why)


def check(job: Job, done: dict[str, list[Turn]]) -> str:
    """Both sides made as many pairs, of responses as long and as probable to the policy, with the same scores, and began at
    the loss of their rule.

    Raises:
        ValueError: they did not.
    """

    def mean(attribute: str) -> dict[str, float]:
        values = {name: [getattr(turn, attribute) for turn in turns] for name, turns in done.items()}
        return {name: float(np.mean(np.hstack(of_turns))) for name, of_turns in values.items()}

    pairs, losses, logprobs = mean("num_examples"), mean("loss"), mean("logprob")
    lengths, scores = mean("lengths"), mean("scores")
    if max(abs(loss - math.log(2)) for loss in losses.values()) > LARGEST_LOSS_GAP:
        raise ValueError(f"policy and reference are the same, but the losses are {losses}, not ln 2")
    if abs(logprobs["ours"] - logprobs["TRL"]) > LARGEST_LOGPROB_GAP:
        raise ValueError(f"a token's logprob is {logprobs}: the two sides do not sample from the same policy")
    deviation = float(np.std(np.hstack([turn.scores for turn in done["ours"]])))
    if job.judge and abs(scores["ours"] - scores["TRL"]) > LARGEST_SCORE_GAP * deviation:
        raise ValueError(f"scores are {scores} in the mean, their deviation is {deviation:.3g}")
    if job.full and any(set(turn.lengths) != {job.max_tokens} for turns in done.values() for turn in turns):
        raise ValueError(f"responses are not all of {job.max_tokens} tokens: {lengths} in the mean")
    for found, unit in ((pairs, "pairs a round"), (lengths, "tokens a response")):
        if abs(found["ours"] / found["TRL"] - 1) > MOST_APART[job.full]:
            raise ValueError(f"{unit} are {found}: more than {MOST_APART[job.full]:.0%} apart")
    told = {
        "pairs a round": pairs,
        "tokens a response": lengths,
        "nats a token": logprobs,
        "mean score": scores,
        "mean loss (ln 2 where policy and reference are the same)": losses,
    }
    return "; ".join(f"{unit} {found['ours']:.4g}, TRL {found['TRL']:.4g}" for unit, found in told.items())


def _stages(name: str, turns: Sequence[Turn]) -> dict[str, float]:
    """Medians over the rounds."""
    return {f"{name}: {stage} s": statistics.median(turn.stages[stage] for turn in turns) for stage in turns[0].stages}


def cases(options: Options) -> dict[str, Job]:
    """All cases by name."""
    return CASES


def rows(options: Options) -> Iterator[Row]:
    """Measure. On cores every engine of ours answers its part of a round in one call."""
    with tempfile.TemporaryDirectory(prefix="rlsys-round-") as scratch:
        scenes, judge = map(str, scenes_models())
        folders = {"": "", "scenes": scenes, "judge": judge, "large": str(make_policy(scratch, seed=0, shape=LARGE))}
        for case, job in CASES.items():
            if options.wants(case):
                batch = job.num_prompts // 2
                words = (*job.words, f"rollout.batch={batch}", f"engines.judge.batch={batch}")
                job = replace(job, words=() if device.on_gpu() else words)
                yield measure(case, replace(job, folder=folders[job.folder], judge=folders[job.judge]), options.repeats)
