"""What an objective learns from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.records.arrays import TokenIds
from rlsys.records.prompts import Prompt
from rlsys.records.responses import Response

NO_ROUND = -1
"""What an example says of its round if no round of the run made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """An example that a replay puts among a round's own. The learner is given the example alone."""

    source: str
    """Where it comes from; the round's report counts it under this name."""
    example: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, the first preferred."""

    prompt: Prompt
    prompt_token_ids: TokenIds = field(compare=False)
    """int32 [S], as in the rollout group; empty where only the prompt is known, which the learner then tokenizes."""
    chosen: Response
    rejected: Response
    chosen_score: float
    rejected_score: float
    margin: float
    """`chosen_score - rejected_score`, score units, > 0. Data: never overwritten."""
    beta_scale: float
    """What the method makes of the margin: the pair's beta is `beta * beta_scale`. 1.0 is plain DPO."""
    round: int
    """Round in which the pair was made; `NO_ROUND` if it was made in none of this run's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the answer to imitate (objective `sft`)."""

    prompt: Prompt
    response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CritiquePair:
    """Two annotated answers to one prompt (objective `critique_reward`)."""

    chosen_prompt: Prompt
    """The judge's prompt that shows the better answer."""
    rejected_prompt: Prompt
    chosen_critique: str
    """The annotator's critique of the better answer; empty if there is none (its loss is then masked)."""
    rejected_critique: str
