"""The names of a run's metrics, which are unique across its evaluations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeVar

from rlsys.contracts import Evaluation
from rlsys.errors import ConfigError

T = TypeVar("T")


def directions(evaluations: Mapping[str, Evaluation]) -> dict[str, int]:
    """Direction of every metric that the evaluations may return, by its name in the run: +1 if higher is better, -1 if lower is
    better, 0 if neither.

    Raises:
        ConfigError: an evaluation does not give the directions of its metrics.
    """
    for name, evaluation in evaluations.items():
        if not hasattr(evaluation, "directions"):
            raise ConfigError(
                f"evaluations.{name}={type(evaluation).__name__} must have `directions`: its metrics, and -1, +1 or 0 for each"
            )
    found = {name: dict(evaluation.directions) for name, evaluation in evaluations.items()}
    return told_apart(found, evaluations)


def told_apart(found: Mapping[str, Mapping[str, T]], evaluations: Mapping[str, Any]) -> dict[str, T]:
    """Values by the metric's name in the run: `chair_i` where only one evaluation has such a metric, `scenes.chair_i` where
    several have.

    Args:
        found: values by evaluation and metric.
        evaluations: evaluations by name.
    """
    owners = Counter(metric for evaluation in evaluations.values() for metric in evaluation.directions)
    return {
        metric if owners[metric] < 2 else f"{name}.{metric}": value
        for name, values in found.items()
        for metric, value in values.items()
    }
