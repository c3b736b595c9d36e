"""Which kinds of operations a piece of work spends its time in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

KINDS = {
    "matrix products": ("aten::mm", "aten::addmm"),
    "attention": ("aten::_scaled_dot_product", "aten::bmm", "aten::_softmax"),
    "conversions and copies": ("aten::copy_", "aten::cat", "aten::index_select", "aten::index_copy"),
    "the optimizer": ("aten::_fused_adamw", "Optimizer."),
}
"""Of operations, by how their names begin. Only attention has batched products (`learners/dot_products.py`)."""
OTHERS = "other operations"


def shares(work: Callable[[], Any]) -> dict[str, float]:
    """Of the time in operations, what each kind of them takes; the largest first."""
    import torch

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    found = dict.fromkeys((*KINDS, OTHERS), 0.0)
    for event in profiler.key_averages():
        kind = next((kind for kind, names in KINDS.items() if event.key.startswith(names)), OTHERS)
        found[kind] += event.self_cpu_time_total
    whole = sum(found.values())
    return {kind: found[kind] / whole for kind in sorted(found, key=found.__getitem__, reverse=True)}
