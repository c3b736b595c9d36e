"""The records that travel between stages: frozen, plain, and free of heavy imports.

    Prompt -> RolloutGroup (of Response) -> ScoredGroup (of Verdict) -> examples (PreferencePair, ...) -> learner
    RoundPlan describes what a round will do; RoundReport what it did.

No record holds a ground truth: code that may see the truth rebuilds it from `Prompt.id`. Some records have a slot for weak
references. The journal uses it to recognise such a record by identity without keeping it alive.
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
