"""The examples that objectives learn from.

A kind of example consists of a record class that `example` registers, and of an adapter in the learner (`learners/examples/`)
that defines how it is trained on. A journal stores every registered kind.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from rlsys.errors import ConfigError
from rlsys.records.arrays import TokenIds
from rlsys.records.prompts import Prompt
from rlsys.records.responses import Response

NO_ROUND = -1
"""Value of an example's `round` if no round of the run made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """An example that a replay adds to a round's own examples. The learner gets only the example that it wraps."""

    source: str
    """Name of the example's origin; the round's report counts it under this name."""
    example: Any


T = TypeVar("T", bound=type)

EXAMPLES: dict[str, type] = {}
"""Record classes of examples by name."""


def example(kind: T) -> T:
    """Decorator that registers a record class of examples under its name.

    Raises:
        ConfigError: the name is taken by another class.
    """
    known = EXAMPLES.setdefault(kind.__name__, kind)
    if (known.__module__, known.__qualname__) != (kind.__module__, kind.__qualname__):
        raise ConfigError(f"the example record {kind.__name__} is already {known.__module__}.{known.__qualname__}")
    EXAMPLES[kind.__name__] = kind
    return kind


def _no_tokens() -> np.ndarray:
    return np.zeros(0, dtype=np.int32)


@example
@dataclass(frozen=True, slots=True, kw_only=True)
class PreferencePair:
    """Two responses to one prompt, the first preferred."""

    prompt: Prompt
    prompt_token_ids: TokenIds = field(compare=False)
    """int32 [S], as in the rollout group. It is empty where only the prompt's text is known; the learner then tokenizes it."""
    chosen: Response
    rejected: Response
    chosen_score: float
    rejected_score: float
    margin: float
    """`chosen_score - rejected_score`, score units, > 0. The margin is data and is never overwritten."""
    beta_scale: float
    """The method's function of the margin: the pair's beta is `beta * beta_scale`. 1.0 is plain DPO."""
    round: int
    """Round in which the pair was made; `NO_ROUND` if no round of this run made it."""


@example
@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """One sampled candidate with its advantage, for policy gradients.

    An example is one response and not a group, so that all batches but the last have the same number of responses. A response
    that was sampled `count` times appears as `count` examples, because the average over a group runs over its candidates. The
    learner computes such copies once.
    """

    prompt: Prompt
    prompt_token_ids: TokenIds = field(compare=False)
    """int32 [S], as in the rollout group."""
    response: Response
    score: float
    """Score units."""
    advantage: float
    """The advantage that the example builder computes from the scores of the whole group; it is the same for all tokens of the
    response.
    """
    round: int
    """Round in which the response was scored."""


@example
@dataclass(frozen=True, slots=True, kw_only=True)
class RatedResponse:
    """One response that is rated good or bad by itself, without comparison with another one."""

    prompt: Prompt
    prompt_token_ids: TokenIds = field(compare=False)
    """int32 [S], as in the rollout group. It is empty where only the prompt's text is known; the learner then tokenizes it."""
    response: Response
    is_desirable: bool
    score: float
    """Score from which the rating was made, score units."""
    round: int
    """Round in which the response was rated."""
    mismatched: Response | None = None
    """A response to another prompt of the batch, which the learner fills in where the objective needs one."""


@example
@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A prompt and the response to imitate (objective `sft`)."""

    prompt: Prompt
    response: Response
    prompt_token_ids: TokenIds = field(default_factory=_no_tokens, compare=False)
    """int32 [S]. It is empty where only the prompt's text is known; the learner then tokenizes it."""
    score: float | None = None
    """Score by which the response was chosen among others, score units; `None` if it was not chosen by a score."""
    round: int | None = None
    """Round in which the response was chosen; `None` for data from outside the run."""


@example
@dataclass(frozen=True, slots=True, kw_only=True)
class CritiquePair:
    """Two annotated responses to one prompt (objective `critique_reward`)."""

    chosen_prompt: Prompt
    """The judge's prompt that shows the better response."""
    rejected_prompt: Prompt
    chosen_critique: str
    """The annotator's critique of the better response; empty if there is none (its loss is then masked)."""
    rejected_critique: str
