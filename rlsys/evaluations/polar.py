"""Yes/no questions: POPE (Li et al., arXiv 2305.10355). `yes` is the positive class unless another one is asked for.

There are two ways to read a free-text response. `read_polar` accepts any spelling, and reports a response that says neither yes
nor no, or both, as unreadable. `read_pope` is the rule of the paper, for numbers that are compared with published ones: it
reads `NO`, `No!` and an off-topic response as a yes. Evaluations use `read_polar`, because under the paper's rule a policy that
collapses into off-topic responses would score like one that always says yes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_POPE_NEGATIVE = frozenset({"No", "not", "no"})
_NEGATIVE = frozenset({"no", "not", "nope", "isn't", "aren't", "doesn't", "don't", "cannot", "can't"})
_POSITIVE = frozenset({"yes", "yeah", "yep"})
_SENTENCE_END = re.compile(r"[.!?;\n]")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class PolarScores:
    """Rates within 0..1; `None` where the rate is 0/0. A response that cannot be read is wrong, and counts as neither a yes nor
    a no.
    """

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    """2 TP / (2 TP + FP + FN)."""
    yes_ratio: float | None
    """Share of all responses that say yes."""
    unparsable: float | None
    """Share of responses that say neither yes nor no, or both."""


def read_polar(text: str) -> bool | None:
    """Whether a response says yes or no, in any case and punctuation; `None` if it says neither, or both.

    The first sentence that says yes or no decides; later sentences count as explanation.
    """
    for sentence in _SENTENCE_END.split(text):
        words = set(_WORD.findall(sentence.lower().replace("’", "'")))
        says_yes, says_no = bool(words & _POSITIVE), bool(words & _NEGATIVE)
        if says_yes or says_no:
            return None if says_yes and says_no else says_yes
    return None


def read_pope(text: str) -> bool:
    """The original rule of POPE (arXiv 2305.10355, released evaluation code). A response is a no if its first sentence, up to
    the first full stop and without commas, has one of the words No, not, no; otherwise it is a yes.
    """
    return not _POPE_NEGATIVE & set(text.split(".")[0].replace(",", "").split(" "))


def polar_scores(predicted: Sequence[bool | None], truth: Sequence[bool], *, positive: bool = True) -> PolarScores:
    """Scores of n responses.

    Args:
        predicted: the readings of the responses; `None` for one that cannot be read.
        truth: the true answers.
        positive: the class whose precision, recall and F1 are computed; AMBER uses `False` (no).

    Raises:
        ValueError: the numbers of responses and of truths differ.
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
        unparsable=_ratio(sum(said is None for said in predicted), len(pairs)),
    )


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
