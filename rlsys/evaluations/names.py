"""The metrics of a run's evaluations under names that tell them apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from rlsys.contracts import Evaluation
from rlsys.errors import ConfigError

T = TypeVar("T")


def directions(evaluations: Mapping[str, Evaluation]) -> dict[str, int]:
    """Every metric that the evaluations may return, by its name in the run: +1 if higher is better, -1 if lower, 0 if neither.

    Raises:
        ConfigError: an evaluation does not say so of its metrics.
    """
    for name, evaluation in evaluations.items():
        if not hasattr(evaluation, "directions"):
            raise ConfigError(
                f"evaluations.{name}={type(evaluation).__name__} must have `directions`: its metrics, and -1, +1 or 0 for each"
            )
    found = {name: dict(evaluation.directions) for name, evaluation in evaluations.items()}
    return told_apart(found, evaluations)


def told_apart(found: Mapping[str, Mapping[str, T]], evaluations: Mapping[str, Any]) -> dict[str, T]:
    """Values by metric: `chair_i` where one evaluation alone has such a metric, `scenes.chair_i` where several have.

    Args:
        found: by evaluation and metric.
    """
    owners = Counter(metric for evaluation in evaluations.values() for metric in evaluation.directions)
    return {
        metric if owners[metric] < 2 else f"{name}.{metric}": value
        for name, values in found.items()
        for metric, value in values.items()
    }
