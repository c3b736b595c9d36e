"""Percentile bootstrap of ratios of sums, for all resamples at once.

Letters: N units that are drawn with replacement (the responses, or the prompts where a prompt has several responses), R
resamples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.records import Interval
from rlsys.seeding import generator

_TAIL_PERCENT = 2.5


@dataclass(frozen=True)
class Bootstrap:
    """R resamples of N units. Every metric of an evaluation uses the same resamples, so that its metrics are comparable.

    Example:
        bootstrap = Bootstrap.draw(len(false), resamples=1000, seed=0)
        chair_i = bootstrap.ratio(false, mentioned)
    """

    weights: np.ndarray
    """float64 [R, N], how often a resample contains a unit."""

    @classmethod
    def draw(cls, num_units: int, *, resamples: int, seed: int) -> Bootstrap:
        """
        Raises:
            ValueError: there are no units or no resamples.
        """
        if num_units < 1 or resamples < 1:
            raise ValueError(f"a bootstrap needs units and resamples, got {num_units} and {resamples}")
        rng = generator(seed, "bootstrap", num_units, resamples)
        probabilities = np.full(num_units, 1.0 / num_units)
        return cls(rng.multinomial(num_units, probabilities, size=resamples).astype(np.float64))

    def ratio(self, numerators: np.ndarray, denominators: np.ndarray) -> Interval | None:
        """sum(numerators) / sum(denominators) with its 95 % interval.

        Args:
            numerators: [N].
            denominators: [N].

        Returns:
            `None` where the value is 0/0. Resamples that are 0/0 are left out of the interval.
        """
        total = float(np.sum(denominators))
        if total == 0:
            return None
        tops = self.weights @ np.asarray(numerators, dtype=np.float64)
        bottoms = self.weights @ np.asarray(denominators, dtype=np.float64)
        drawn = tops[bottoms != 0] / bottoms[bottoms != 0]
        value = float(np.sum(numerators)) / total
        if not drawn.size:
            return Interval(value=value, low=value, high=value)
        low, high = np.percentile(drawn, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
        return Interval(value=value, low=float(low), high=float(high))
