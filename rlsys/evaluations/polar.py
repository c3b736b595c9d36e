"""Yes/no questions: POPE (Li et al., arXiv 2305.10355). `yes` is the positive class unless another one is asked for.

There are two readings of a free answer. `read_polar` takes any spelling and says of an answer that is neither yes nor no, or
both, that it cannot be read. `read_pope` is the rule of the paper, for numbers that are to stand beside published ones: it
takes `NO`, `No!` and an answer about something else for a yes. Evaluations use `read_polar`: under the other rule a policy
that collapses into answers off the subject would score as one that always says yes.
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
    """Rates within 0..1; `None` where the rate is 0/0. An answer that cannot be read is wrong, and neither a yes nor a no."""

    accuracy: float | None
    precision: float | None
    recall: float | None
    f1: float | None
    """2 TP / (2 TP + FP + FN)."""
    yes_ratio: float | None
    """Share of answers that say yes, of all."""
    unparsable: float | None
    """Share of answers that say neither yes nor no, or both."""


def read_polar(text: str) -> bool | None:
    """What an answer says, in any case and punctuation; `None` if it says neither yes nor no, or both.

    Its first sentence that says anything of the kind decides; what comes after it explains.
    """
    for sentence in _SENTENCE_END.split(text):
        words = set(_WORD.findall(sentence.lower().replace("’", "'")))
        says_yes, says_no = bool(words & _POSITIVE), bool(words & _NEGATIVE)
        if says_yes or says_no:
            return None if says_yes and says_no else says_yes
    return None


def read_pope(text: str) -> bool:
    """The original rule of POPE (arXiv 2305.10355, released evaluation code): an answer is a no if its first sentence, up to
    the first full stop and without commas, has one of the words No, not, no; else it is a yes.
    """
    return not _POPE_NEGATIVE & set(text.split(".")[0].replace(",", "").split(" "))


def polar_scores(predicted: Sequence[bool | None], truth: Sequence[bool], *, positive: bool = True) -> PolarScores:
    """Scores of n answers.

    Args:
        predicted: what the answers say; `None` for one that cannot be read.
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
        unparsable=_ratio(sum(said is None for said in predicted), len(pairs)),
    )


def _ratio(numerator: int, denominator: int) -> float | None:
    return numerator / denominator if denominator else None
