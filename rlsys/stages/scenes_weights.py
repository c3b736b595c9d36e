"""Makes the scenes world's policy as it is before any training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlsys import registry
from rlsys.stages.base import MODEL, Stage, StageTools
from rlsys.worlds.scenes.policy import make_policy


@registry.stage("scenes_weights")
@dataclass(kw_only=True)
class ScenesWeights(Stage):
    """Writes a small Qwen2.5-VL with random weights, drawn from the seed, and the world's tokenizer and processor."""

    def make(self, target: Path, tools: StageTools) -> None:
        """See `Stage.make`."""
        make_policy(target / MODEL, seed=tools.seed)
