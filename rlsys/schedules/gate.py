"""The rules that refuse a round's weights, and those that end a run before its schedule does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rlsys.errors import ConfigError, RoundRefused
from rlsys.records import Interval, RoundReport


@dataclass(kw_only=True)
class GateConfig:
    """Options of the gate and of the stop rules. All rules are off by default."""

    metric: str = "chair_i"
    """Held-out metric that the rules below use; it is one of the evaluation's `directions`."""
    refuse: bool = False
    """Refuse a round whose metric is worse than the best accepted one by more than `tolerance`, and return to the last accepted
    weights.
    """
    tolerance: float = 0.0
    """Tolerated worsening, in units of the metric."""
    max_refusals: int = 3
    """Largest number of consecutive refusals; one more ends the run with an error."""
    patience: int | None = None
    """Stop after this many consecutive evaluated rounds without a better metric."""
    kl_budget: float | None = None
    """Stop once KL(the policy that sampled the round || the initial policy) reaches this, nats per response. The rule needs the
    initial policy's weights (`learner.initial_copy=true`, or LoRA) and, in every round, responses on which KL can be estimated
    (`learner.kl_responses` > 0, a temperature of 1, `top_p` 1).
    """

    def __post_init__(self) -> None:
        if self.max_refusals < 0:
            raise ConfigError(f"gate.max_refusals must be >= 0, got {self.max_refusals}")
        if self.tolerance < 0:
            raise ConfigError(f"gate.tolerance must be >= 0, got {self.tolerance}")
        if self.patience is not None and self.patience < 1:
            raise ConfigError(f"gate.patience must be at least 1, got {self.patience}")
        if self.kl_budget is not None and self.kl_budget <= 0:
            raise ConfigError(f"gate.kl_budget must be > 0, got {self.kl_budget}")

    def direction(self, directions: Mapping[str, int]) -> int:
        """-1 if a lower metric is better, +1 if a higher one is. Where no rule uses the metric, 0 may stand for an unknown
        direction.

        Args:
            directions: directions of the evaluation's metrics (`rlsys.contracts.Evaluation`).

        Raises:
            ConfigError: a rule uses the metric, but the evaluation does not know it or gives it no direction.
        """
        found = directions.get(self.metric, 0)
        if self.looks_at_metric and self.metric not in directions:
            known = ", ".join(sorted(directions)) or "none"
            raise ConfigError(f"gate.metric={self.metric} is no metric of the evaluation; there are: {known}")
        if self.looks_at_metric and not found:
            raise ConfigError(f"gate.metric={self.metric} is neither better lower nor better higher")
        return found

    @property
    def looks_at_metric(self) -> bool:
        """Whether a rule needs the held-out metric."""
        return self.refuse or self.patience is not None


@dataclass(kw_only=True)
class MetricGate:
    """Remembers the best held-out metric of a run; its state is part of every checkpoint."""

    config: GateConfig
    directions: Mapping[str, int] = field(default_factory=dict)
    """Directions of the evaluation's metrics."""
    best: float | None = None
    rounds_without_gain: int = 0
    refusals: int = 0

    def __post_init__(self) -> None:
        self._direction = self.config.direction(self.directions)

    def begin(self, metrics: Mapping[str, Interval]) -> None:
        """Take the starting policy's held-out metrics as the best so far.

        Raises:
            ConfigError: a rule needs a metric that the evaluation does not give.
        """
        if self.config.looks_at_metric and self.config.metric not in metrics:
            raise ConfigError(f"gate.metric {self.config.metric!r} is not measured; there are: {sorted(metrics)}")
        if self.best is None:
            self.best = self._value(metrics)

    def accepts(self, report: RoundReport) -> bool:
        """Whether the round's weights are accepted. Call this once per round. A round that was not evaluated is accepted and
        changes nothing. A round whose metric is absent or not a number is worse than any other: a collapsed policy may no
        longer say anything that the metric could be measured on.

        Raises:
            RoundRefused: more than `max_refusals` consecutive rounds were refused.
        """
        if not report.eval:
            return True
        value = self._value(report.eval)
        gain = value is not None and (self.best is None or self._better(value, self.best))
        is_worse = self.best is not None and (value is None or self._worse(value, self.best))
        refused = self.config.refuse and is_worse
        self.rounds_without_gain = 0 if gain else self.rounds_without_gain + 1
        self.best = value if gain else self.best
        self.refusals = self.refusals + 1 if refused else 0
        if self.refusals > self.config.max_refusals:
            found = "could not be measured and" if value is None else f"{value:g}"
            raise RoundRefused(
                f"round {report.round}: {self.config.metric} {found} is worse than the best {self.best:g}; "
                f"{self.refusals} rounds in a row were refused, gate.max_refusals is {self.config.max_refusals}"
            )
        return not refused

    def stops(self, report: RoundReport) -> str | None:
        """The reason why the run ends after this round, or `None`. This call changes no state."""
        patience, budget = self.config.patience, self.config.kl_budget
        if patience is not None and self.rounds_without_gain >= patience:
            best = "never measured" if self.best is None else f"best {self.best:g}"
            return f"{self.config.metric} has not got better for {self.rounds_without_gain} rounds ({best})"
        if budget is not None and "kl_initial" in report.metrics:  # it is absent in a round without pairs
            divergence = report.metrics["kl_initial"]
            if divergence >= budget:
                return f"KL from the initial policy {divergence:.3f} has reached the budget {budget:g}"
        return None

    def state(self) -> dict:
        """The state for the checkpoint, which `restore` reads."""
        return {
            "metric": self.config.metric,
            "best": self.best,
            "rounds_without_gain": self.rounds_without_gain,
            "refusals": self.refusals,
        }

    def restore(self, state: dict, evaluated: Sequence[Mapping[str, Interval]] = ()) -> None:
        """Continue from a checkpoint. If the rules now use another metric, the gate starts from that metric's last value.

        Args:
            state: as `state` returned it.
            evaluated: held-out metrics of the accepted rounds so far.

        Raises:
            ConfigError: as `begin`, if no round has measured the other metric.
        """
        metric = self.config.metric
        if state.get("metric", metric) == metric:
            self.best, self.rounds_without_gain = state["best"], state["rounds_without_gain"]
            self.refusals = state["refusals"]
        elif evaluated:
            self.begin(next((found for found in reversed(evaluated) if metric in found), evaluated[-1]))

    def _value(self, metrics: Mapping[str, Interval]) -> float | None:
        """The value of the metric; `None` if it is absent or not a number."""
        value = metrics[self.config.metric].value if self.config.metric in metrics else math.nan
        return None if math.isnan(value) else value

    def _better(self, value: float, than: float) -> bool:
        return self._direction * (value - than) > 0

    def _worse(self, value: float, than: float) -> bool:
        return self._direction * (value - than) < -self.config.tolerance
