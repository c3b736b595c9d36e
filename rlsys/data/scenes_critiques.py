"""Pairs of a policy's own responses to annotated scenes. Each response has a critique by the annotator, who knows the true
content of the scene (MM-RLHF, arXiv 2502.10391, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from omegaconf import MISSING

from rlsys import registry
from rlsys.data.base import Data
from rlsys.errors import ConfigError
from rlsys.prompts.scenes import ScenesPrompts
from rlsys.records import CritiquePair
from rlsys.worlds.scenes.annotate import critique_pairs

if TYPE_CHECKING:
    from rlsys.stages.base import StageTools


@registry.data("scenes_critiques")
@dataclass(kw_only=True)
class ScenesCritiques(Data):
    """Pairs of annotated responses of a policy to scenes of the `annotated` split. The number of pairs depends on how much the
    responses to one prompt differ in quality."""

    produces: ClassVar[type] = CritiquePair
    needs_engine: ClassVar[bool] = True

    model: str | None = None
    """The policy: `stage:NAME`, or a Hugging Face folder or name; `null` is the model that training starts from."""
    engine: Any = MISSING
    """Engine on which the policy responds, chosen as `engine@<here>.engine=NAME`. It is separate from the run's own engine, so
    that a change of the run's engine options does not require another judge to be trained."""
    batch: int = 32
    """Prompts per engine call. Another batch size gives other rounding errors."""
    num_prompts: int = 2000
    """Number of annotated prompts."""
    num_candidates: int = 4
    """Number of responses of the policy to each prompt."""
    max_tokens: int = 64
    """Largest number of tokens of a response."""
    max_pairs_per_prompt: int = 4
    """Largest number of pairs of one prompt; 0 is no limit."""
    num_shortened: int = 2
    """Number of responses per prompt that also appear with a statement left out, so that the judge sees omissions."""
    disturbed_rate: float = 0.5
    """Share of the prompts for which the judge also sees a response that is empty, off the subject, or drifts off the subject
    at the end."""

    def __post_init__(self) -> None:
        for name in ("batch", "num_prompts", "num_candidates", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("max_pairs_per_prompt", "num_shortened"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.disturbed_rate <= 1:
            raise ConfigError(f"data.disturbed_rate must be in [0, 1], got {self.disturbed_rate}")

    def models(self) -> tuple[str, ...]:
        """See `Data.models`."""
        return (self.model,) if self.model else ()

    def examples(self, model: Path, tools: StageTools) -> Sequence[CritiquePair]:
        """See `Data.examples`."""
        groups = tools.respond(
            tools.model(self.model) if self.model else model,
            list(ScenesPrompts(split="annotated").take(0, self.num_prompts)),
            engine=self.engine,
            batch=self.batch,
            num_candidates=self.num_candidates,
            max_tokens=self.max_tokens,
        )
        pairs = critique_pairs(
            [(group.prompt, [response.text for response in group.responses]) for group in groups],
            max_pairs_per_prompt=self.max_pairs_per_prompt,
            num_shortened=self.num_shortened,
            disturbed_rate=self.disturbed_rate,
            seed=tools.seed,
        )
        return list(pairs)
