"""The records that travel between stages: frozen, plain, and free of heavy imports.

    Prompt -> RolloutGroup (of Response) -> ScoredGroup (of Verdict) -> examples (PreferencePair, ...) -> learner
    RoundPlan says what a round is to do; RoundReport what it did.

No record holds a truth: whoever may read the truth makes it again from `Prompt.id`. Records with a slot for weak references
can be recognised by identity without being kept alive; the journal does that.
"""

from rlsys.records.arrays import CandidateFloats, Pixels, TokenFloats, TokenIds, TokenMask
from rlsys.records.asking import Ask, Completion, Generation, Probe, Sampling
from rlsys.records.examples import (
    EXAMPLES,
    NO_ROUND,
    CritiquePair,
    Demonstration,
    PreferencePair,
    RatedResponse,
    Replayed,
    ScoredResponse,
    example,
)
from rlsys.records.judging import Claim, Critique, ScoredGroup, Verdict
from rlsys.records.prompts import Image, Prompt, Turn
from rlsys.records.responses import Response, RolloutGroup, Sampled, text_response
from rlsys.records.rounds import FitReport, Interval, RoundPlan, RoundReport, SyncReport

__all__ = [
    "CandidateFloats",
    "Pixels",
    "TokenFloats",
    "TokenIds",
    "TokenMask",
    "Ask",
    "Completion",
    "Generation",
    "Probe",
    "Sampling",
    "EXAMPLES",
    "CritiquePair",
    "Demonstration",
    "PreferencePair",
    "Replayed",
    "NO_ROUND",
    "RatedResponse",
    "ScoredResponse",
    "example",
    "Claim",
    "Critique",
    "ScoredGroup",
    "Verdict",
    "Image",
    "Prompt",
    "Turn",
    "Response",
    "RolloutGroup",
    "Sampled",
    "text_response",
    "FitReport",
    "Interval",
    "RoundPlan",
    "RoundReport",
    "SyncReport",
]
