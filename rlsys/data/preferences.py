"""Preference pairs from a file of JSON lines.

A row holds a `prompt` (the user's text, or messages), and the `chosen` and the `rejected` response. It may hold a `margin`
above 0, which says by how much the chosen response is better (1 if it is not given). It may also hold `image` or `images`,
paths relative to the file.
    {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Seven.", "margin": 2.0}
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rlsys import registry
from rlsys.data.json_lines import Images, JsonLines, Row, prompt_of, text_of
from rlsys.errors import ConfigError
from rlsys.examples.scaling import beta_scale
from rlsys.records import PreferencePair, Response

_UNKNOWN = np.zeros(0, dtype=np.int32)
"""Token ids of a text that the learner tokenizes."""


@registry.data("preferences")
@dataclass(kw_only=True)
class JsonlPreferences(JsonLines):
    """Pairs in the order of the file. No engine of this run sampled their responses."""

    produces: ClassVar[type] = PreferencePair

    scale_w: float = 0.0
    """How much a pair's beta grows with its margin, as in the example builders; 0 is plain DPO."""
    scale_k: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale_w", "scale_k"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} must be at least 0, got {getattr(self, name)}")

    def example(self, row: Row, place: str, images: Images) -> PreferencePair:
        """See `JsonLines.example`."""
        margin = row.get("margin", 1.0)
        if isinstance(margin, bool) or not isinstance(margin, int | float) or not 0 < margin < math.inf:
            raise ConfigError(f"{place}: margin must be a number above 0, got {margin!r}")
        chosen, rejected = (text_of(row, key, place) for key in ("chosen", "rejected"))
        if chosen == rejected:
            raise ConfigError(f"{place}: chosen and rejected are the same text")
        return PreferencePair(
            prompt=prompt_of(row, place, images),
            prompt_token_ids=_UNKNOWN,
            chosen=Response(text=chosen, token_ids=_UNKNOWN),
            rejected=Response(text=rejected, token_ids=_UNKNOWN),
            chosen_score=float(margin),
            rejected_score=0.0,
            margin=float(margin),
            beta_scale=beta_scale(margin, self.scale_w, self.scale_k),
            round=0,
        )
