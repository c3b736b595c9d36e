"""A schedule is a list of phases; a phase is a number of rounds with the same rules, and numbers that may ramp over them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

from rlsys import registry
from rlsys.errors import ConfigError
from rlsys.records import RoundPlan

REFERENCES = ("initial", "previous", "ema")
DATA = ("current", "accumulated")


def ramp(value: Any, step: int, steps: int, *, key: str) -> float:
    """The number that `value` stands for in round `step` (from 0) of a phase of `steps` rounds.

    Args:
        value: a number, or `{start: a, end: b, shape: linear | cosine}`; the first round gets `start`, the last `end`.

    Raises:
        ConfigError: `value` is neither; the message names `key`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, dict)):
        raise ConfigError(f"{key} must be a number or a ramp {{start, end, shape}}, got {value!r}")
    if not isinstance(value, dict):
        return float(value)
    unknown = set(value) - {"start", "end", "shape"}
    if unknown or not {"start", "end"} <= set(value):
        raise ConfigError(f"{key}: a ramp has the keys start, end and shape, got {value!r}")
    shape = value.get("shape", "linear")
    if shape not in ("linear", "cosine"):
        raise ConfigError(f"{key}.shape must be linear or cosine, got {shape!r}")
    fraction = step / (steps - 1) if steps > 1 else 0.0
    if shape == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    return float(value["start"] + (value["end"] - value["start"]) * fraction)


@dataclass(kw_only=True)
class Phase:
    """A stretch of rounds. Fields typed `Any` are a number or a ramp `{start, end, shape}` over the phase's rounds."""

    rounds: int = 5
    num_prompts: Any = 256
    num_candidates: Any = 8
    """Candidates per prompt, shared evenly between the temperatures."""
    temperatures: list[float] = field(default_factory=lambda: [1.0])
    top_p: float = 1.0
    max_tokens: int = 64
    epochs: int = 1
    lr: Any = 1e-6
    beta: Any = 0.1
    scale_w: Any = 0.5
    """w of dynamic reward scaling; 0 gives every pair the same beta."""
    scale_k: Any = 0.5
    pairs: str = "all_pairs"
    """Name of a pair builder."""
    min_margin: Any = 0.0
    max_pairs_per_prompt: Any = 0
    """0 is no limit."""
    reference: str = "previous"
    """`initial`: the policy the run started from; `previous`: the one that sampled the round; `ema`: a moving average."""
    data: str = "current"
    """`current`: the round's pairs; `accumulated`: those and all earlier ones."""
    lag: int = 0
    """Rounds that generation may run ahead of training."""

    def __post_init__(self) -> None:
        for name in ("rounds", "epochs", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"schedule phase: {name} must be at least 1, got {getattr(self, name)}")
        if self.lag < 0:
            raise ConfigError(f"schedule phase: lag must be at least 0, got {self.lag}")
        if not self.temperatures or min(self.temperatures) < 0:
            raise ConfigError(f"schedule phase: temperatures must be numbers >= 0, got {self.temperatures}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"schedule phase: top_p must be in (0, 1], got {self.top_p}")
        if self.reference not in REFERENCES:
            raise ConfigError(
                f"schedule phase: reference must be one of {', '.join(REFERENCES)}, got {self.reference!r}"
            )
        if self.data not in DATA:
            raise ConfigError(f"schedule phase: data must be one of {', '.join(DATA)}, got {self.data!r}")
        if registry.pairs and self.pairs not in registry.pairs:
            raise ConfigError(
                f"schedule phase: no pairs {self.pairs!r}; there are: {', '.join(sorted(registry.pairs))}"
            )
        self.plan(0, 0)
        self.plan(self.rounds - 1, self.rounds - 1)

    def plan(self, step: int, round: int) -> RoundPlan:
        """The plan of the phase's round `step` (from 0), which is round `round` of the run.

        Raises:
            ConfigError: a number out of its range.
        """

        def number(name: str, low: float, *, strict: bool = False) -> float:
            value = ramp(getattr(self, name), step, self.rounds, key=f"schedule phase: {name}")
            if value < low or (strict and value == low):
                raise ConfigError(f"schedule phase: {name} must be {'>' if strict else '>='} {low:g}, got {value:g}")
            return value

        candidates = round_half_up(number("num_candidates", 1))
        if candidates % len(self.temperatures):
            raise ConfigError(
                f"schedule phase: num_candidates must be a multiple of the {len(self.temperatures)} temperatures, "
                f"got {candidates}"
            )
        return RoundPlan(
            round=round,
            num_prompts=round_half_up(number("num_prompts", 1)),
            num_candidates=candidates,
            temperatures=tuple(float(value) for value in self.temperatures),
            top_p=float(self.top_p),
            max_tokens=self.max_tokens,
            epochs=self.epochs,
            lr=number("lr", 0.0),
            beta=number("beta", 0.0, strict=True),
            scale_w=number("scale_w", 0.0),
            scale_k=number("scale_k", 0.0),
            pairs=self.pairs,
            min_margin=number("min_margin", 0.0),
            max_pairs_per_prompt=round_half_up(number("max_pairs_per_prompt", 0)),
            reference=self.reference,
            data=self.data,
            lag=self.lag,
        )


def round_half_up(value: float) -> int:
    """Nearest whole number, halves upwards (a ramp 100 -> 101 must not depend on the parity of its numbers)."""
    return math.floor(value + 0.5)


class Schedule:
    """All rounds of a run.

    Schedule([Phase(rounds=2, lr=1e-5), Phase(rounds=3, lr=5e-6)]).plan(2).lr  # 5e-6
    """

    def __init__(self, phases: list[Phase]) -> None:
        if not phases:
            raise ConfigError("schedule.phases is empty")
        self._plans: list[RoundPlan] = []
        for phase in phases:
            for step in range(phase.rounds):
                self._plans.append(phase.plan(step, len(self._plans)))

    @property
    def num_rounds(self) -> int:
        return len(self._plans)

    def plan(self, round: int) -> RoundPlan:
        """What round `round` (from 0) is to do."""
        return self._plans[round]

    def cut(self, num_rounds: int) -> Schedule:
        """The first rounds of this schedule, as they are; all if there are fewer."""
        shorter = copy.copy(self)
        shorter._plans = self._plans[:num_rounds]
        return shorter

    def first_prompt(self, round: int) -> int:
        """Position of the round's first prompt in the source: rounds take prompts one after another."""
        return sum(plan.num_prompts for plan in self._plans[:round])
