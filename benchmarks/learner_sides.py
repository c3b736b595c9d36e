"""Our side of the learner's measurement, and what TRL's shares with it: the job, the trace of first steps, memory."""

from __future__ import annotations

import ctypes
import gc
import re
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learner_work import Work, with_logprobs
from benchmarks.processes import ANSWER, END
from benchmarks.profiling import shares
from rlsys.records import PreferencePair

WARMUP = 1
"""Turns of a side that do not count."""
BETA = 0.1
TIMED_LR = 1e-7
"""So small that recorded log-probabilities stay those of the weights over all turns, and are checked in each."""
CHECKED_LR = 2e-5
"""That of the scenes rounds."""
CHECKED_STEPS = 3


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a side is given."""

    work: Work
    checkpoint: Path
    num_turns: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a side did in its first steps, to be held against the other's."""

    losses: list[float]
    """Mean of each step's batch."""
    gradients: dict[str, Any]
    """Of the first step, by parameter."""
    moved: dict[str, Any]
    """How far the weights went in all steps."""

    def differences(self, other: Trace) -> dict[str, float]:
        """Largest absolute differences of losses and gradients; of the weights the root of the mean square, as a share of
        the way that they went: AdamW moves a weight whose gradient is almost nothing by a full step, either way.
        """
        for kind in ("gradients", "moved"):
            mine, others = getattr(self, kind), getattr(other, kind)
            if mine.keys() != others.keys():
                raise ValueError(f"{kind} of other parameters: {sorted(mine.keys() ^ others.keys())[:3]}")
        apart = sum(float(((way - other.moved[name]) ** 2).sum()) for name, way in self.moved.items())
        return {
            "loss": max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)),
            "gradients": max(float(abs(g - other.gradients[name]).max()) for name, g in self.gradients.items()),
            "largest gradient": max(float(abs(gradient).max()) for gradient in self.gradients.values()),
            "weights": (apart / sum(float((way**2).sum()) for way in self.moved.values())) ** 0.5,
        }


def serve_ours(pipe: Any, job: Job) -> None:
    """`trace`, `turn` (seconds), `peak` (bytes), `profile` (shares of a turn)."""
    from learners.plan import FitPlan
    from rlsys import wire

    pairs = job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    pairs = recorded(_learner(job), pairs)
    learner = _learner(job)  # another one, that has seen no picture yet
    size = job.work.batch
    frames = [wire.encode_many(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    waiting = iter([frames[i : i + job.work.steps] for i in range(0, len(frames), job.work.steps)])

    def turn(lr: float = TIMED_LR) -> float:
        batches = next(waiting)
        started = time.perf_counter()
        learner.begin(FitPlan(lr=lr, beta=BETA))
        for number, frame in enumerate(batches):
            learner.step(frame, lr=lr, batch=number)
        return time.perf_counter() - started

    def trace() -> Trace:
        learner.reset()
        found = _trace_ours(learner, frames[:CHECKED_STEPS])
        learner.reset()
        return found

    def peak() -> float:
        resident = reset_peak()
        turn()
        return peak_bytes() - resident

    def profile() -> dict[str, float]:
        return shares(turn)

    answers = {"turn": turn, "trace": trace, "peak": peak, "profile": profile}
    pipe.send((ANSWER, None))
    while (question := pipe.recv()) != END:
        pipe.send((ANSWER, answers[question]()))


def reset_peak() -> int:
    """Bytes resident now; `peak_bytes` counts from here."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what is free but kept would not be counted when it is used again
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """Most bytes resident at any time since `reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"^{name}:\s+(\d+) kB$", text, re.MULTILINE)[1])


def _learner(job: Job) -> Any:
    work = job.work
    return open_learner(
        job.checkpoint,
        batch_size=work.batch,
        freeze=["visual"] if work.frozen_vision else [],
        precision=work.precision,
    )


def open_learner(checkpoint: Path, **options: Any) -> Any:
    """A learner's only rank, in this process.

    Args:
        options: of `learners.config.LearnerConfig`.
    """
    from learners.config import LearnerConfig
    from learners.learner import LearnerRank
    from learners.rendezvous import Rendezvous
    from rlsys.objectives.dpo import DPO

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = Rendezvous(rank=0, world_size=1, address="127.0.0.1", port=port)
    return LearnerRank(LearnerConfig(**options), DPO(beta=BETA), str(checkpoint), meeting)


def recorded(learner: Any, pairs: Sequence[PreferencePair], *, at_once: int = 64) -> list[PreferencePair]:
    """The pairs as a round would hand them on: with the log-probabilities of the weights that sampled them.

    Args:
        at_once: answers that the learner is asked about together.
    """
    from rlsys import wire
    from rlsys.records import Probe

    probes = [
        Probe(
            prompt=pair.prompt,
            prompt_token_ids=tuple(pair.prompt_token_ids.tolist()),
            response_token_ids=tuple(answer.token_ids.tolist()),
        )
        for pair in pairs
        for answer in (pair.chosen, pair.rejected)
    ]
    logprobs = []
    for start in range(0, len(probes), at_once):
        logprobs += learner.logprobs(wire.encode_many(probes[start : start + at_once]))
    return with_logprobs(pairs, logprobs)


def _trace_ours(learner: Any, frames: Sequence[bytes]) -> Trace:
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad

    from learners.plan import FitPlan

    def master(parameter: Any) -> Any:
        """The float32 weight; the parameter itself where there is no other."""
        found = safe_get_full_fp32_param(parameter)
        return parameter if found is None else found

    engine, gradients, losses = learner._engine, {}, []
    step, clip = engine.step, engine._grad_clip

    def watched(lr: float) -> float:
        if not gradients:
            gradients.update(arrays(engine.module, safe_get_full_grad))
        return step(lr)

    # TRL's trace does not clip either: beside AdamW's epsilon a small gradient that was scaled down takes another step.
    engine.step, engine._grad_clip = watched, 0.0
    before = arrays(engine.module, master)
    learner.begin(FitPlan(lr=CHECKED_LR, beta=BETA))
    for number, frame in enumerate(frames):
        output = learner.step(frame, lr=CHECKED_LR, batch=number)
        losses.append(output.sums["loss"] / output.denominator)
    engine.step, engine._grad_clip = step, clip
    return Trace(losses=losses, gradients=gradients, moved=moved(before, engine.module, master))


def moved(before: dict[str, Any], module: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
    return {name: value - before[name] for name, value in arrays(module, read).items()}


def arrays(module: Any, read: Callable[[Any], Any]) -> dict[str, Any]:
    """What is read of every trained parameter, in float32."""
    found = {}
    for name, parameter in module.named_parameters():
        value = read(parameter) if parameter.requires_grad else None
        if value is not None:  # where no picture is shown, the tower has no gradient
            found[name.removeprefix("model.model.").removeprefix("model.")] = value.detach().float().clone().numpy()
    return found
