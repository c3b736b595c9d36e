"""Dynamic reward scaling: a pair's beta grows with the pair's margin (MM-RLHF, arXiv 2502.10391, section 4.2)."""

from __future__ import annotations

import math


def beta_scale(margin: float, w: float, k: float) -> float:
    """The factor on a pair's beta: `1 + w * (1 - exp(-k * max(margin, 0)))`, in [1, 1 + w].

    A pair of which the judge is sure gets a larger beta. A margin of zero or less gives plain DPO.

    Args:
        margin: score of the chosen response minus score of the rejected one, score units.
        w: largest addition to the factor, at least 0; 0 is plain DPO.
        k: how fast the factor grows with the margin, per score unit, at least 0; 0 is plain DPO.

    Raises:
        ValueError: `w` or `k` is negative or not finite, or the margin is not a number.
    """
    if math.isnan(margin):
        raise ValueError(f"beta_scale: margin must be a number, got {margin}")
    for name, value in (("w", w), ("k", k)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"beta_scale: {name} must be finite and at least 0, got {value}")
    if k == 0:
        return 1.0
    return 1.0 - w * math.expm1(-k * max(margin, 0.0))
