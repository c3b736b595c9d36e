"""Everything a run is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlsys.checkpoints.run import Checkpoints
from rlsys.contracts import (
    ExampleBuilder,
    FeedbackStage,
    Gate,
    Learner,
    PromptSource,
    Replay,
    RolloutStage,
    Tracker,
    Weights,
)
from rlsys.journal import Journal
from rlsys.records import Interval
from rlsys.schedules.phases import Schedule


@dataclass(frozen=True, kw_only=True)
class RunComponents:
    """What the loop and its helpers are given."""

    schedule: Schedule
    prompts: PromptSource
    fingerprint: str
    """What besides a plan decides a round's answers, as text: answers of a run that was cut short are taken again only if
    it has not changed."""
    rollouts: RolloutStage
    feedback: FeedbackStage
    builder: ExampleBuilder
    replay: Replay
    learner: Learner
    weights: Weights
    evaluate: Callable[[int], dict[str, Interval]]
    """Held-out metrics of the engines' current weights, for a round number; empty if that round is not evaluated."""
    gate: Gate
    journal: Journal
    checkpoints: Checkpoints
    tracker: Tracker
