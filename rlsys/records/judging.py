"""The results of a feedback: critiques, claims, scores and verdicts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlsys.records.responses import Response, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """A judge's text about one response, and the score at its end."""

    text: str
    score: float | None
    """Score in the judge's units, higher is better, always finite; `None` where no score could be read from the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of a response, and the result of checking it."""

    text: str
    label: str = ""
    """For example `true`, `false` or `unclear`; empty if the claim was not checked."""
    score: float | None = None
    """For example the probability that the claim is true; `None` if there is no number."""
    start: int = 0
    """First character of the claim in the response."""
    end: int = 0
    """One past the last character of the claim; 0 if the claim has no place in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything that the feedback found out about one response."""

    MAIN: ClassVar[str] = "score"
    """Name of the score that example builders compare."""

    critiques: tuple[Critique, ...] = ()
    """All critiques that were delivered, including those without a readable score."""
    scores: dict[str, float] = field(default_factory=dict)
    """Scores by name, score units, always finite. A score that could not be obtained is absent."""
    claims: tuple[Claim, ...] = ()
    failed: int = 0
    """Number of judgements that were asked for but were not delivered or could not be read."""

    @classmethod
    def of_critiques(cls, critiques: tuple[Critique, ...], *, failed: int = 0) -> Verdict:
        """The verdict whose score is the mean over the critiques that have a score; it has no score if none has."""
        read = [critique.score for critique in critiques if critique.score is not None]
        scores = {cls.MAIN: sum(read) / len(read)} if read else {}
        return cls(critiques=critiques, scores=scores, failed=failed)

    @property
    def score(self) -> float | None:
        """The score by which responses are compared. If it is `None`, the response takes part in no example."""
        return self.scores.get(self.MAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A rollout group with one verdict per response."""

    group: RolloutGroup
    verdicts: tuple[Verdict, ...]
    """One verdict per entry of `group.responses`, in the same order."""

    @property
    def scored(self) -> list[tuple[Response, float]]:
        """The responses that have a score, each with its score."""
        pairs = zip(self.group.responses, self.verdicts, strict=True)
        return [(response, verdict.score) for response, verdict in pairs if verdict.score is not None]
