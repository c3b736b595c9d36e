"""What a feedback says of responses."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from rlsys.records.responses import Response, RolloutGroup


@dataclass(frozen=True, slots=True, kw_only=True)
class Critique:
    """A judge's words on one response, and the number they ended in."""

    text: str
    score: float | None
    """Score units of the judge, higher is better, always finite; `None` where no score could be read from the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One statement of a response, and what was found out about it."""

    text: str
    label: str = ""
    """For example `true`, `false` or `unclear`; empty if the claim was not checked."""
    score: float | None = None
    """For example the probability that the claim is true; `None` if there is no number."""
    start: int = 0
    """First character of the claim in the response."""
    end: int = 0
    """One past its last character; 0 if the claim has no place in the text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Everything the feedback said of one response."""

    MAIN: ClassVar[str] = "score"
    """Name of the score by which example builders compare."""

    critiques: tuple[Critique, ...] = ()
    """Every critique that came, also where no score could be read from it."""
    scores: dict[str, float] = field(default_factory=dict)
    """By name, score units, always finite. A score that could not be had is absent."""
    claims: tuple[Claim, ...] = ()
    failed: int = 0
    """Judgements asked for that could not be read or did not come."""

    @classmethod
    def of_critiques(cls, critiques: tuple[Critique, ...], *, failed: int = 0) -> Verdict:
        """The verdict whose score is the mean over the critiques that have one; without a score if none has."""
        read = [critique.score for critique in critiques if critique.score is not None]
        scores = {cls.MAIN: sum(read) / len(read)} if read else {}
        return cls(critiques=critiques, scores=scores, failed=failed)

    @property
    def score(self) -> float | None:
        """The score by which responses are compared; `None` if there is none: the response then takes part in no example."""
        return self.scores.get(self.MAIN)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredGroup:
    """A rollout group with one verdict per response."""

    group: RolloutGroup
    verdicts: tuple[Verdict, ...]
    """As many as `group.responses`, in their order."""

    @property
    def scored(self) -> list[tuple[Response, float]]:
        """Responses that have a score, with it."""
        pairs = zip(self.group.responses, self.verdicts, strict=True)
        return [(response, verdict.score) for response, verdict in pairs if verdict.score is not None]
