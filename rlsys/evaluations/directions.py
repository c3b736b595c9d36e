"""Which way held-out metrics get better, for the gate and the report alike."""

from __future__ import annotations

DIRECTIONS = {
    "chair_i": -1,
    "chair_s": -1,
    "chair_s_refined": -1,
    "false_position": -1,
    "unparsable": -1,
    "recall": +1,
    "accuracy": +1,
    "precision": +1,
    "f1": +1,
    "mean_length": 0,
    "partner_share": 0,
    "yes_ratio": 0,
}
"""-1: lower is better, +1: higher is better, 0: neither. An evaluation's own metrics need not be here."""
