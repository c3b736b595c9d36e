"""Yes/no questions: POPE (Li et al., arXiv 2305.10355). `yes` is the positive class unless another one is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_NEGATIVE_WORDS = frozenset({"No", "not", "no"})


@dataclass(frozen=True, slots=True, kw_only=True)
class PolarScores:
    """Rates within 0..1; `None` where the rate is 0/0."""

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    """2 TP / (2 TP + FP + FN)."""
    yes_ratio: float | None


def read_polar(text: str) -> bool:
    """POPE's reading of a free answer: `False` if its first sentence, without commas, has a word of No, not, no; else
    `True`.

    An empty or unrelated answer is thus a yes; where that matters, find such answers before (see `is_polar`).
    """
    return not _NEGATIVE_WORDS & set(text.split(".")[0].replace(",", "").split(" "))


def is_polar(text: str) -> bool:
    """Whether an answer says yes or no at all, in any spelling."""
    return bool(re.search(r"\b(yes|no|not)\b", text, flags=re.IGNORECASE))


def polar_scores(predicted: Sequence[bool], truth: Sequence[bool], *, positive: bool = True) -> PolarScores:
    """Scores of n answers.

    Args:
        positive: the class that precision, recall and F1 are about; AMBER takes `False` (no).

    Raises:
        ValueError: not as many answers as truths.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} answers but {len(truth)} truths")
    pairs = list(zip(predicted, truth, strict=True))
    true_positive = sum(said == positive and is_so == positive for said, is_so in pairs)
    false_positive = sum(said == positive and is_so != positive for said, is_so in pairs)
    false_negative = sum(said != positive and is_so == positive for said, is_so in pairs)
    return PolarScores(
        accuracy=_ratio(sum(said == is_so for said, is_so in pairs), len(pairs)),
        precision=_ratio(true_positive, true_positive + false_positive),
        recall=_ratio(true_positive, true_positive + false_negative),
        f1=_ratio(2 * true_positive, 2 * true_positive + false_positive + false_negative),
        yes_ratio=_ratio(sum(map(bool, predicted)), len(pairs)),
    )


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
