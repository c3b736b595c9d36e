"""Weight updates between learner and engine on one GPU, over CUDA IPC, against a copy of the same bytes on the device.

    python -m benchmarks.gpu_sync

Real learner and real engine, each in a process of its own, policies of the shape of Qwen2.5-VL with random weights in
bfloat16; every update is proven by digest and probes, as in a run.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_setup import (
    QWEN_3B,
    QWEN_7B,
    TINY,
    copy_rate,
    engine,
    make_model,
    on_gpu,
    options,
    place,
    precision,
)
from benchmarks.harness import Row, Spread, in_turn, table, write
from benchmarks.tables import ON_GPU
from benchmarks.weight_sync_ends import NUM_PROBES, Ends, TimedSync, Took
from rlsys.app.cluster import cluster
from rlsys.run.sync import TOLERANCES

SHAPES = {"Qwen2.5-VL-3B": QWEN_3B, "Qwen2.5-VL-7B": QWEN_7B}
TINY_SHAPES = {"tiny": TINY}
TARGET = ON_GPU["gpu_sync"].target
BUCKET_BYTES = 2 << 30
"""The largest tensor of the 7B's, its embedding, has 1.09 GB."""


class GpuEnds(Ends):
    """Both on the GPU."""

    def __init__(self, model: Path) -> None:
        from actors.stages import RolloutStage
        from learners.config import LearnerConfig
        from learners.group import LearnerGroup
        from rlsys.objectives.dpo import DPO
        from rlsys.prompts.scenes import ScenesPrompts

        self.rollouts = RolloutStage(
            engine=engine(max_model_len=1024),
            current=lambda: (str(model), 0),
            placements=[place(0.3)],
            seed=0,
            probe_prompts=list(ScenesPrompts().take(0, NUM_PROBES)),
        )
        self.learner = LearnerGroup(LearnerConfig(precision=precision()), DPO(), str(model), placements=[place(0.6)])
        self._version = 0


def transport() -> Any:
    """IPC; gloo where there is no GPU."""
    from rlsys.transports.gloo import Gloo
    from rlsys.transports.ipc import Ipc

    return Ipc(bucket_bytes=BUCKET_BYTES) if on_gpu() else Gloo()


def measure(name: str, shape: Any, repeats: int) -> list[Row]:
    """The rows of one policy."""
    took: list[Took] = []
    with tempfile.TemporaryDirectory(prefix="rlsys-gpu-") as scratch:
        ends = GpuEnds(make_model(Path(scratch), shape))
        try:
            sync = ends.sync(transport(), _Bf16Sync)
            num_bytes = ends.publish(sync).report.num_bytes

            def ours() -> float:
                took.append(ends.publish(sync))
                return num_bytes / took[-1].transfer / 1e9

            moved = in_turn(ours, lambda: copy_rate(min(num_bytes, 1 << 30)) / 1e9, repeats=repeats)
        finally:
            ends.close()
    counted = took[1:]
    report = counted[-1].report
    checked = (
        f"{report.num_tensors} tensors, {num_bytes / 1e9:.2f} GB, digest {report.digest[:12]} on both ends; at most "
        f"{max(t.report.max_logprob_gap for t in counted):.1e} nats apart on {report.num_probe_tokens} tokens"
    )
    return [
        Row(
            case=f"{name}: transfer into an engine that loads meanwhile",
            ours=moved[0],
            other=moved[1],
            other_name="copy on the device" if on_gpu() else "copy in memory",
            ratio=moved[2],
            unit="GB/s",
            target=TARGET if on_gpu() else None,
            checked=checked,
            extra={"transfer s": Spread.of([t.transfer for t in counted]).median},
        ),
        Row(case=f"{name}: whole update with its proof", ours=Spread.of([t.whole for t in counted]), unit="s"),
    ]


class _Bf16Sync(TimedSync):
    def __init__(self, **given: Any) -> None:
        super().__init__(**{**given, "tolerance": TOLERANCES["bf16"] if on_gpu() else given["tolerance"]})


def main(words: Sequence[str] | None = None) -> int:
    """Measure all cases."""
    given = options(__doc__, words, cases=lambda tiny: TINY_SHAPES if tiny else SHAPES)
    if given is None:
        return 0
    rows: list[Row] = []
    for name, shape in (TINY_SHAPES if given.tiny else SHAPES).items():
        if name in given.cases:
            with cluster(None):
                rows += measure(name, shape, given.repeats)
            print(table("measured:", rows[-2:]), flush=True)
    title = "Weight updates on one GPU over CUDA IPC" if on_gpu() else "Weight updates"
    write("gpu_sync", title, rows, repeats=given.written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
