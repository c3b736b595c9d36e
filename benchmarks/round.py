"""Pairs per second of whole online rounds, two answers to a prompt, against TRL's OnlineDPOTrainer.

    python -m benchmarks.round

Ours is the loop as a run has it (`rlsys.rounds.run_rounds` at staleness 0): answers by vLLM, rewards, pairs, journal,
optimizer steps, checkpoint, weight update with its proof. TRL's is its own training loop with the way to answer that
shows pictures to the policy (transformers' `generate`), without gradient checkpointing, with the number of prompts per
step and the precision that are fastest, compiled (`torch_compile`) if that is faster still (by the median of steps that
come before, the fastest two settings in two trials). Same policy, prompts, reward and loss (sigmoid DPO, beta 0.1), the
same cores; whoever waits stands still; a turn is three rounds of ours and one of TRL's. On cores that multiply in bfloat16
each side takes the precision that is faster for it: TRL is tried in both, ours is bfloat16 beside float32 weights. On
others both take float32.
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from benchmarks import cpu
from benchmarks.arguments import parse
from benchmarks.gpu_setup import on_gpu
from benchmarks.harness import Row, Target, in_turn, memory_gib, table, write
from benchmarks.models import scenes_models
from benchmarks.processes import JobSide, stopped
from benchmarks.round_sides import Job, Turn, our_rounds
from benchmarks.round_trl import serve_trl
from benchmarks.trl_turns import ALLOCATOR, Tuned
from rlsys.placement.machine import GIB, container_limits, this_machine
from rlsys.report.progress import quiet_libraries
from rlsys.worlds.scenes.policy import Shape, make_policy

TITLE = "Whole online rounds: pairs per second, two answers to a prompt"
LARGE = Shape(hidden=512, layers=16, mlp=1536)
"""50 million parameters."""
NUM_ENGINES = NUM_RANKS = 2
TWO_CORES = (
    f"rollout.num_actors={NUM_ENGINES}",
    "rollout.cores=0.5",
    "rollout.engine.enforce_eager=false",
    f"learner.num_ranks={NUM_RANKS}",
    "learner.cores=0.5",
    "learner.kl_responses=16",
)
"""Our side at its best: four processes of one thread share two cores, so that neither core waits for the other's stage. Of
rounds this small the default would pass half of the answers through the policy once more for an estimate that TRL does not
make.
"""
APART = "One side after the other: turns are compared in their order."
LARGEST_LOSS_GAP = 0.005
"""Of the mean loss from ln 2: in bfloat16 two passes over the same answer differ."""
LARGEST_LOGPROB_GAP = 0.2
"""Nats of a token, in the mean. Both sides sample their own answers, and TRL's policy reads pictures at other positions; one
that did not see them, or sampled otherwise, would be further off.
"""
LEAST_SHARE = 0.99
"""Of the prompts that must have made a pair on each side: two answers may, rarely, be the same."""
MOST_APART = 0.15
"""As a share, by how much pairs a round, and tokens an answer, may differ where answers end by themselves."""
TRL_64_BYTES = 11e9
"""Peak resident memory of TRL's process in the case of 50 M parameters with 64 prompts a step, as measured."""
TRL_SHARE = 1 / 3
"""Of the memory, that TRL may take: our engines and ranks are there at the same time."""


def measure(case: str, job: Job, target: Target | None, repeats: int, note: str = "", together: bool = True) -> Row:
    """The row of one case.

    Args:
        together: both sides are there at once and take turns; where they do not fit at once, one comes after the other.
    """
    done: dict[str, list[Turn]] = {"ours": [], "TRL": []}

    def side(name: str, work: Callable[[], Turn], waiting: Sequence[int] = ()) -> float:
        with stopped(waiting):
            done[name].append(work())
        return done[name][-1].speed

    if together:
        with their_rounds(job) as (theirs, tuned), our_rounds(job) as ours:
            speeds = in_turn(lambda: side("ours", ours), lambda: side("TRL", theirs, ours.pids()), repeats=repeats)
    else:
        with our_rounds(job) as ours:
            mine = iter([side("ours", ours) for _ in range(1 + repeats)])
        with their_rounds(job) as (theirs, tuned):
            speeds = in_turn(lambda: next(mine), lambda: side("TRL", theirs), repeats=repeats)
    counted = {name: turns[1:] for name, turns in done.items()}
    limited = "" if on_gpu() else limits(counted, num_cores=this_machine().num_cpus)
    return Row(
        case=case,
        ours=speeds[0],
        other=speeds[1],
        other_name="TRL",
        ratio=speeds[2],
        unit="pairs/s",
        target=target,
        checked=_check(job, counted),
        note=" ".join(filter(None, (note, _settings(job, tuned), limited, "" if together else APART))),
        extra={
            **_stages("ours", counted["ours"]),
            **_stages("TRL", counted["TRL"]),
            **{f"{name}: CPU ms a pair": 1e3 * _cpu_per_pair(turns) for name, turns in counted.items()},
            "prompts a round": float(job.num_prompts),
        },
    )


@contextmanager
def their_rounds(job: Job) -> Iterator[tuple[Callable[[], Turn], Tuned]]:
    """TRL in a process of its own: a function that does a round, and what trials of its settings have found."""
    with closing(JobSide(serve_trl)) as process:
        tuned = process.begin(job)
        yield lambda: process.ask("turn"), tuned
        process.end()


def _settings(job: Job, tuned: Tuned) -> str:
    """With what both sides ran, and what of TRL's was tried."""
    said = f" (pairs/s of a step with each setting tried: {tuned})" if tuned.speeds else ""
    return (
        f"Ours trains {job.batch} pairs a step in {job.precision}; TRL answers and trains, prompts a step, "
        f"{tuned.best}{said}. {job.untried}"
    ).strip()


def limits(done: dict[str, list[Turn]], *, num_cores: float) -> str:
    """What takes the time on cores that all stages share, and how far the ratio could go."""
    busy = {name: statistics.median(turn.cores[name] for turn in done["ours"]) for name in done["ours"][0].cores}
    ours, theirs = (statistics.median(turn.seconds for turn in done[side]) for side in ("ours", "TRL"))
    shares = ", ".join(f"{name} {number / num_cores:.0%}" for name, number in busy.items())
    alone = {name: theirs * num_cores / (number * ours) for name, number in busy.items()}
    return (
        f"Of our {num_cores:g} cores' time (CPU time of the processes): {shares}. Were everything but the engines free "
        f"(answers, loading of weights, probes), and these spread over all cores, the ratio would be "
        f"{alone['answering']:.2g}; were everything but the learner's ranks, {alone['training']:.2g}."
    )


def _check(job: Job, done: dict[str, list[Turn]]) -> str:
    """Both sides made the same number of pairs, of answers of the same lengths and as probable to the policy, and began at
    the loss of its rule.

    Raises:
        ValueError: they did not.
    """
    pairs = {name: statistics.mean(turn.num_pairs for turn in turns) for name, turns in done.items()}
    lengths = {name: Counter(length for turn in turns for length in turn.lengths) for name, turns in done.items()}
    losses = {name: statistics.mean(turn.loss for turn in turns) for name, turns in done.items()}
    logprobs = {name: statistics.mean(turn.logprob for turn in turns) for name, turns in done.items()}
    if max(abs(loss - math.log(2)) for loss in losses.values()) > LARGEST_LOSS_GAP:
        raise ValueError(f"policy and reference are the same, but the losses are {losses}, not ln 2")
    if abs(logprobs["ours"] - logprobs["TRL"]) > LARGEST_LOGPROB_GAP:
        raise ValueError(f"a token's log-probability is {logprobs}: the two sides do not sample from the same policy")
    if job.full:
        if min(pairs.values()) < LEAST_SHARE * job.num_prompts:
            raise ValueError(f"pairs a round of {job.num_prompts} prompts: {pairs}")
        if any(set(found) != {job.max_tokens} for found in lengths.values()):
            raise ValueError(f"answers are not all of {job.max_tokens} tokens: {lengths}")
        said = (
            f"all answers have {job.max_tokens} tokens on both sides, which sample no special token, the end included"
        )
    else:
        means = {name: statistics.mean(found.elements()) for name, found in lengths.items()}
        for found, unit in ((pairs, "pairs a round"), (means, "tokens an answer")):
            if abs(found["ours"] / found["TRL"] - 1) > MOST_APART:
                raise ValueError(f"{unit} are {found}: more than {MOST_APART:.0%} apart")
        said = f"{means['ours']:.1f} and {means['TRL']:.1f} tokens an answer"
    return (
        f"{pairs['ours']:.1f} pairs a round, TRL {pairs['TRL']:.1f}; {said}; a token has {logprobs['ours']:.3f} nats, TRL's "
        f"{logprobs['TRL']:.3f}; mean loss {losses['ours']:.4f}, TRL "
        f"{losses['TRL']:.4f} (ln 2 where policy and reference are the same)"
    )


def _stages(name: str, turns: Sequence[Turn]) -> dict[str, float]:
    """Medians over the rounds, and the sum of a side's own stages."""
    found = {f"{name}: {stage} s": statistics.median(turn.stages[stage] for turn in turns) for stage in turns[0].stages}
    whole = statistics.median(turn.seconds for turn in turns)
    together = statistics.median(sum(turn.stages.values()) for turn in turns)
    return {**found, f"{name}: sum of stages s": together, f"{name}: round s": whole}


def _cpu_per_pair(turns: Sequence[Turn]) -> float:
    return statistics.median(turn.cpu_seconds_per_pair for turn in turns)


def fitted(job: Job, memory: float) -> Job:
    """The job without those sizes of TRL's that leave our side too little of so many bytes."""
    too_large = {size: taken for size, taken in job.taken.items() if taken > TRL_SHARE * memory}
    if not too_large:
        return job
    told = ", ".join(f"{size} ({taken / 1e9:.0f} GB)" for size, taken in too_large.items())
    untried = (
        f"TRL is not tried with {told}: that is more than a third of this machine's {memory / 1e9:.0f} GB, and our "
        "side is there at the same time."
    )
    return replace(job, tried=tuple(size for size in job.tried if size not in too_large), untried=untried)


def _at_best(job: Job, folders: dict[str, Path]) -> Job:
    """Every engine of ours answers its part of a round in one call."""
    job = fitted(job, min(memory_gib(), container_limits().memory_gib) * GIB)
    precisions = ("fp32", "bf16") if cpu.multiplies_in_bf16() else ("fp32",)
    return replace(
        job,
        folder=str(folders[job.folder]),
        words=(*TWO_CORES, f"rollout.batch={job.num_prompts // NUM_ENGINES}"),
        precision=precisions[-1],
        precisions=precisions,
        compiles=True,
    )


_SCENES = Job(folder="scenes", num_prompts=256, max_tokens=64, batch=64, tried=(32, 64, 128))
CASES: dict[str, tuple[Job, Target | None]] = {
    "scenes, 64-token answers": (_SCENES, Target(at_least=2.5)),
    "256-token answers": (
        replace(_SCENES, num_prompts=64, max_tokens=256, tried=(32, 64)),
        Target(at_least=3.0),
    ),
    "50 M parameters": (
        replace(_SCENES, folder="large", num_prompts=64, batch=32, tried=(16, 32, 64), taken={64: TRL_64_BYTES}),
        Target(at_least=3.0),
    ),
    "scenes, answers as long as the policy makes them": (
        replace(_SCENES, num_prompts=128, full=False, tried=(64, 128)),
        None,
    ),
}
"""Pairs per optimizer step are those with which each side is fastest, of those that fit; `folder` names a model."""
NOTE = (
    "Ours takes the recorded log-probabilities of the answers as reference and checks 8 of them a round; TRL's reference "
    "is a second model that it asks in every step. TRL does not hand on the kinds of tokens, so that its policy reads "
    "pictures at the positions of text, which costs the same. "
    f"{ALLOCATOR}"
)


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    options = parse(__doc__.splitlines()[0], words, cases=CASES)
    quiet_libraries()
    rows = []
    with tempfile.TemporaryDirectory(prefix="rlsys-round-models-") as scratch:
        folders = {"scenes": scenes_models()[0], "large": make_policy(Path(scratch) / "large", seed=0, shape=LARGE)}
        for name in options.cases:
            job, target = CASES[name]
            rows.append(measure(name, _at_best(job, folders), target, options.repeats, NOTE))
            print(table("measured:", rows[-1:]), flush=True)
    write("round", TITLE, rows, repeats=options.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
