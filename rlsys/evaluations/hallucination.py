"""Object hallucination against known object sets: CHAIR, recall and F1 (Rohrbach et al., arXiv 1809.02156; Object HalBench).

For response j, M_j is the list of objects mentioned (repeats count), and G_j is the set of objects that are in the image. Every
metric is a ratio of sums over responses, so a response is fully described by its contribution to each numerator and
denominator.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass

Ratios = Mapping[str, tuple[float, float]]
"""Metric -> the contributions of one response to its numerator and its denominator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectScores:
    """Rates within 0..1; `None` where the rate is 0/0, because responses that mention nothing prove nothing."""

    chair_i: float | None
    """Share of mentions that are false."""
    chair_s: float | None
    """Share of responses with a false mention."""
    chair_s_refined: float | None
    """Share of responses with a false mention among those that mention anything (response rate of Object HalBench)."""
    recall: float | None
    """Share of the objects in the image that are named; also called cover."""
    f1: float | None
    """Harmonic mean of recall and 1 - CHAIR_i."""


def object_ratios(mentions: Sequence[Hashable], there: Collection[Hashable]) -> dict[str, tuple[float, float]]:
    """The contributions of one response to CHAIR_i, CHAIR_s (raw and refined) and recall.

    Args:
        mentions: M_j, repeats included.
        there: G_j.
    """
    truth = frozenset(there)
    num_false = sum(one not in truth for one in mentions)
    return {
        "chair_i": (num_false, len(mentions)),
        "chair_s": (num_false > 0, 1),
        "chair_s_refined": (num_false > 0, bool(mentions)),
        "recall": (len(truth.intersection(mentions)), len(truth)),
    }


def object_scores(mentions: Sequence[Sequence[Hashable]], truths: Sequence[Collection[Hashable]]) -> ObjectScores:
    """Scores of a set of responses.

    Args:
        mentions: M_j of every response.
        truths: G_j of every response.

    Raises:
        ValueError: the numbers of truths and of responses differ.
    """
    if len(mentions) != len(truths):
        raise ValueError(f"{len(mentions)} responses but {len(truths)} truths")
    rows = [object_ratios(said, there) for said, there in zip(mentions, truths, strict=True)]
    values = {name: ratio_of_sums(rows, name) for name in ("chair_i", "chair_s", "chair_s_refined", "recall")}
    return ObjectScores(**values, f1=_harmonic_mean(values["recall"], values["chair_i"]))


def ratio_of_sums(rows: Sequence[Ratios], name: str) -> float | None:
    """One metric over responses; `None` if it is 0/0."""
    bottom = sum(row[name][1] for row in rows)
    return sum(row[name][0] for row in rows) / bottom if bottom else None


def _harmonic_mean(recall: float | None, chair_i: float | None) -> float | None:
    if recall is None or chair_i is None:
        return None
    precision = 1.0 - chair_i
    return 2 * recall * precision / (recall + precision) if recall + precision else 0.0


def amber_score(chair: float, f1: float) -> float:
    """AMBER score (arXiv 2311.07397) from a generative CHAIR and a discriminative F1, all in percent."""
    return (100.0 - chair + f1) / 2.0
