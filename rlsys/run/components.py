"""Everything a run is made of."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.checkpoints.run import Checkpoints
from rlsys.contracts import (
    Evaluate,
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
    evaluate: Evaluate
    gate: Gate
    journal: Journal
    checkpoints: Checkpoints
    tracker: Tracker
