"""The run components: all objects that the loop of a run uses."""

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
    """The components of one run, which the composition root makes for the loop, its pipeline and its recorder."""

    schedule: Schedule
    prompts: PromptSource
    fingerprint: str
    """The run fingerprint: everything besides the plan that determines a round's responses, as text. A resumed run reuses the
    responses of an interrupted round only if the fingerprint is unchanged."""
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
