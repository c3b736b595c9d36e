"""Probabilities read from candidate tokens: yes or no, A or B."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from rlsys.errors import ConfigError
from rlsys.records import Completion, Generation


def spellings(word: str) -> tuple[str, ...]:
    """The ways in which a model may begin a response with a word: with and without a space, in three cases.

    >>> spellings("yes")
    ('yes', 'Yes', 'YES', ' yes', ' Yes', ' YES')
    """
    cases = dict.fromkeys((word, word.capitalize(), word.upper()))
    return (*cases, *(f" {case}" for case in cases))


def check_labels(name: str, *labels: str) -> None:
    """
    Raises:
        ConfigError: a label is empty, or two are spelled alike.
    """
    known: set[str] = set()
    for label in labels:
        if not label.strip() or known & set(spellings(label)):
            raise ConfigError(f"{name} must be different words, got {', '.join(map(repr, labels))}")
        known |= set(spellings(label))


def candidates(*labels: str) -> tuple[str, ...]:
    """All spellings of some labels, for `Sampling.candidate_tokens`."""
    return tuple(token for label in labels for token in spellings(label))


def probabilities(generation: Generation, *labels: str) -> np.ndarray | None:
    """Probability of each label at the first generated position, given that one of them stands there.

    Args:
        labels: in the order in which `candidates` was given them.

    Returns:
        float64 of as many entries as labels, 1 in sum; `None` if the generation did not come or has no such values.
    """
    if not generation.completions:
        return None
    values = _first(generation.completions[0])
    if values is None:
        return None
    ends = np.cumsum([len(spellings(label)) for label in labels])
    parts = np.split(values, ends[:-1])
    weights = [np.logaddexp.reduce(part) for part in parts]
    total = np.logaddexp.reduce(weights)
    return np.exp(np.array(weights) - total) if math.isfinite(total) else None


def _first(completion: Completion) -> np.ndarray | None:
    values = completion.candidate_values
    if values is None or not len(values) or np.isnan(values[0]).any():
        return None
    return values[0].astype(np.float64)


def mean(values: Sequence[float]) -> float | None:
    """The mean; `None` of nothing."""
    return sum(values) / len(values) if values else None
