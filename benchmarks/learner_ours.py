"""Our side of the learner's measurement, and what TRL's shares with it: the job, the trace of first steps, memory."""

from __future__ import annotations

import ctypes
import gc
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.device import precision, synchronized
from benchmarks.learner_work import Work
from benchmarks.processes import ANSWER, READY
from rlsys.records import PreferencePair, Response

WARMUP = 1
"""Turns of a side that do not count."""
BETA = 0.1
TIMED_LR = 1e-7
"""So small that recorded logprobs stay those of the weights over all turns, and are checked in each."""
CHECKED_LR = 2e-5
"""That of the scenes rounds."""
CHECKED_STEPS = 3
_AT_ONCE = 64
"""Responses that a learner is asked about together before the turns."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a side is given."""

    work: Work
    checkpoint: Path
    num_turns: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What a side did in its first steps, to be compared with the other side."""

    losses: list[float]
    """Mean of each step's batch."""
    gradients: dict[str, Any]
    """Gradients of the first step, by name of the parameter."""
    moved: dict[str, Any]
    """How far the weights went in all steps."""

    def differences(self, other: Trace) -> dict[str, float]:
        """Largest absolute differences of losses and gradients; of the weights the root of the mean square, as a share of
        the way that they went: AdamW moves a weight whose gradient is almost nothing by a full step, either way.
        """
        if self.gradients.keys() != other.gradients.keys() or self.moved.keys() != other.moved.keys():
            raise ValueError("the two sides train other parameters")
        apart = sum(float(((way - other.moved[name]) ** 2).sum()) for name, way in self.moved.items())
        return {
            "loss": max(abs(a - b) for a, b in zip(self.losses, other.losses, strict=True)),
            "gradients": max(float(abs(g - other.gradients[name]).max()) for name, g in self.gradients.items()),
            "largest gradient": max(float(abs(gradient).max()) for gradient in self.gradients.values()),
            "weights": (apart / sum(float((way**2).sum()) for way in self.moved.values())) ** 0.5,
        }


def serve_ours(pipe: Any, job: Job) -> None:
    """Says that it is ready, then answers `trace`, `turn` (seconds) and `peak` (bytes)."""
    from learners.plan import FitPlan
    from rlsys import wire

    pairs = job.work.make_pairs(job.work.pairs_per_turn * job.num_turns, job.checkpoint)
    pairs = recorded(_learner(job), pairs)
    learner = _learner(job)  # another one, whose memory no scoring has touched
    size = job.work.batch
    frames = [wire.encode_many(pairs[start : start + size]) for start in range(0, len(pairs), size)]
    waiting = iter([frames[i : i + job.work.steps] for i in range(0, len(frames), job.work.steps)])

    def turn() -> float:
        batches = next(waiting)

        def steps() -> None:
            learner.begin(FitPlan(lr=TIMED_LR))
            for number, frame in enumerate(batches):
                learner.step(frame, lr=TIMED_LR, batch=number)

        return synchronized(steps)

    def trace() -> Trace:
        learner.reset()
        found = _trace_ours(learner, frames[:CHECKED_STEPS])
        learner.reset()
        return found

    def peak() -> float:
        resident = reset_peak()
        turn()
        return peak_bytes() - resident

    answers = {"turn": turn, "trace": trace, "peak": peak}
    pipe.send((ANSWER, READY))
    while True:
        pipe.send((ANSWER, answers[pipe.recv()]()))


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
    """A learner's only rank, in this process."""
    from learners.config import LearnerConfig
    from learners.learner import LearnerRank
    from learners.rendezvous import Rendezvous
    from rlsys.objectives.dpo import DPO

    freeze = ["visual"] if job.work.frozen_vision else []
    config = LearnerConfig(batch_size=job.work.batch, freeze=freeze, precision=precision())
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    alone = Rendezvous(rank=0, world_size=1, address="127.0.0.1", port=port)
    return LearnerRank(config, DPO(beta=BETA), str(job.checkpoint), alone)


def recorded(learner: Any, pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs as a round would hand them on: with the logprobs of the weights that sampled them."""
    from rlsys import wire
    from rlsys.records import Probe

    def scored(pair: PreferencePair, response: Response) -> Probe:
        prompt_ids, ids = tuple(pair.prompt_token_ids.tolist()), tuple(response.token_ids.tolist())
        return Probe(prompt=pair.prompt, prompt_token_ids=prompt_ids, response_token_ids=ids)

    probes = [scored(pair, response) for pair in pairs for response in (pair.chosen, pair.rejected)]
    starts = range(0, len(probes), _AT_ONCE)
    found = iter([one for i in starts for one in learner.logprobs(wire.encode_many(probes[i : i + _AT_ONCE]))])

    def with_logprobs(response: Response) -> Response:
        return replace(response, sampled=replace(response.sampled, logprobs=next(found)))

    return [replace(p, chosen=with_logprobs(p.chosen), rejected=with_logprobs(p.rejected)) for p in pairs]


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
    learner.begin(FitPlan(lr=CHECKED_LR))
    for number, frame in enumerate(frames):
        output = learner.step(frame, lr=CHECKED_LR, batch=number)
        losses.append(output.sums["loss"] / output.denominator)
    engine.step, engine._grad_clip = step, clip
    return Trace(losses=losses, gradients=gradients, moved=arrays(engine.module, master, before))


def arrays(module: Any, read: Callable[[Any], Any], before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What is read of every trained parameter in float32; how far it has gone if it was read before."""
    found = {}
    for name, parameter in module.named_parameters():
        value = read(parameter) if parameter.requires_grad else None
        if value is not None:
            name = name.removeprefix("model.model.").removeprefix("model.")
            found[name] = value.detach().float().cpu().clone().numpy() - (0.0 if before is None else before[name])
    return found
