"""A schedule is a list of phases; a phase is a number of rounds with the same rules, whose numbers may ramp over the rounds."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rlsys.errors import ConfigError
from rlsys.records import RoundPlan

REFERENCES = ("initial", "previous", "ema")
OPTION_GROUPS = ("objective", "examples", "feedback", "replay")
"""Groups of plug-ins whose options a phase may set."""


def ramp(value: Any, step: int, steps: int, *, key: str) -> float:
    """The value of `value` in round `step` (from 0) of a phase of `steps` rounds.

    Args:
        value: a number, or `{start: a, end: b, shape: linear | cosine}`; the first round gets `start`, the last `end`.
        step: round of the phase, from 0.
        steps: number of rounds of the phase.
        key: name of the value in error messages.

    Raises:
        ConfigError: `value` is neither; the message names `key`.
    """
    if _is_number(value):
        return float(value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a number or a ramp {{start, end, shape}}, got {value!r}")
    unknown = set(value) - {"start", "end", "shape"}
    if unknown or not {"start", "end"} <= set(value):
        raise ConfigError(f"{key}: a ramp has the keys start, end and shape, got {value!r}")
    shape = value.get("shape", "linear")
    if shape not in ("linear", "cosine"):
        raise ConfigError(f"{key}.shape must be linear or cosine, got {shape!r}")
    for end in ("start", "end"):
        if not _is_number(value[end]):
            raise ConfigError(f"{key}.{end} must be a number, got {value[end]!r}")
    fraction = step / (steps - 1) if steps > 1 else 0.0
    if shape == "cosine":
        fraction = (1 - math.cos(math.pi * fraction)) / 2
    return float(value["start"] + (value["end"] - value["start"]) * fraction)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(kw_only=True)
class Phase:
    """A stretch of rounds. Fields typed `Any` are a number or a ramp `{start, end, shape}` over the phase's rounds."""

    rounds: int = 5
    num_prompts: Any = 256
    num_candidates: Any = 8
    """Candidates per prompt, divided evenly between the temperatures."""
    temperatures: list[Any] = field(default_factory=lambda: [1.0])
    """Sampling temperatures, each a number or a ramp."""
    top_p: Any = 1.0
    max_tokens: Any = 64
    epochs: Any = 1
    lr: Any = 1e-6
    reference: str = "previous"
    """Reference policy: `initial` is the policy that the run started from, `previous` the policy that sampled the round, `ema`
    a moving average.
    """
    lag: Any = 0
    """Number of rounds that generation may run ahead of training."""
    objective: Any = None
    """Options of the objective for these rounds, such as `{beta: 0.2}`, each a value or a ramp; or the name of another
    objective.
    """
    examples: Any = None
    """Options of the example builder, or the name of another builder, in the same form."""
    feedback: Any = None
    """Options of the feedback, in the same form."""
    replay: Any = None
    """Options of the replay, such as `{share: 0.5}`, or the name of another replay, such as `accumulated`, in the same form."""

    def __post_init__(self) -> None:
        if isinstance(self.rounds, bool) or not isinstance(self.rounds, int) or self.rounds < 1:
            raise ConfigError(f"schedule phase: rounds must be a whole number of at least 1, got {self.rounds!r}")
        if isinstance(self.temperatures, str) or not isinstance(self.temperatures, Sequence) or not self.temperatures:
            raise ConfigError(f"schedule phase: temperatures must be a list of numbers, got {self.temperatures!r}")
        if self.reference not in REFERENCES:
            raise ConfigError(
                f"schedule phase: reference must be one of {', '.join(REFERENCES)}, got {self.reference!r}"
            )
        self.plan(0, 0)
        self.plan(self.rounds - 1, self.rounds - 1)

    def plan(self, step: int, round: int) -> RoundPlan:
        """The plan of the phase's round `step` (from 0), which is round `round` of the run.

        Raises:
            ConfigError: a number is out of its range.
        """

        def number(name: str, low: float, *, high: float = math.inf, above: bool = False) -> float:
            """The number of a field, or of one entry of a list (`name.0`); with `above`, `low` itself is too low."""
            field_name, _, index = name.partition(".")
            value = getattr(self, field_name)[int(index)] if index else getattr(self, field_name)
            found = ramp(value, step, self.rounds, key=f"schedule phase: {name}")
            if found < low or found > high or (above and found == low):
                limits = f"{'>' if above else '>='} {low:g}" + (f" and <= {high:g}" if high < math.inf else "")
                raise ConfigError(f"schedule phase: {name} must be {limits}, got {found:g}")
            return found

        def whole(name: str, low: int) -> int:
            """The nearest integer to the field's number, which may come from a ramp."""
            found = number(name, low)
            if found != int(found) and not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"schedule phase: {name} must be a whole number, got {found:g}")
            return round_half_up(found)

        candidates = whole("num_candidates", 1)
        if candidates % len(self.temperatures):
            raise ConfigError(
                f"schedule phase: num_candidates must be a multiple of the {len(self.temperatures)} temperatures, "
                f"got {candidates}"
            )
        return RoundPlan(
            round=round,
            num_prompts=whole("num_prompts", 1),
            num_candidates=candidates,
            temperatures=tuple(number(f"temperatures.{index}", 0.0) for index in range(len(self.temperatures))),
            top_p=number("top_p", 0.0, high=1.0, above=True),
            max_tokens=whole("max_tokens", 1),
            epochs=whole("epochs", 1),
            lr=number("lr", 0.0),
            reference=self.reference,
            lag=whole("lag", 0),
            options={group: self._options(group, step) for group in OPTION_GROUPS if getattr(self, group)},
        )

    def _options(self, group: str, step: int) -> dict[str, Any]:
        """Options of one group's plug-in in round `step` of the phase."""
        given = getattr(self, group)
        if isinstance(given, str):
            return {"name": given}
        if not isinstance(given, Mapping):
            raise ConfigError(f"schedule phase: {group} must be options such as {{name: value}}, got {given!r}")
        keys = {"start", "end"}
        return {
            name: ramp(value, step, self.rounds, key=f"schedule phase: {group}.{name}")
            if isinstance(value, Mapping) and keys <= set(value)
            else value
            for name, value in given.items()
        }


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
        self._done = (0, 0)
        self._plans: list[RoundPlan] = []
        for phase in phases:
            for step in range(phase.rounds):
                self._plans.append(phase.plan(step, len(self._plans)))

    @property
    def num_rounds(self) -> int:
        return len(self._plans)

    @property
    def num_prompts(self) -> int:
        """Number of prompts of all rounds together."""
        return self.first_prompt(self.num_rounds)

    def going_on(self, round: int, cursor: int) -> Schedule:
        """This schedule for a run that has completed the rounds before `round`, perhaps with another schedule.

        Args:
            round: the first round that is left.
            cursor: number of prompts that the completed rounds have taken.
        """
        later = copy.copy(self)
        later._done = (round, cursor)
        return later

    def plan(self, round: int) -> RoundPlan:
        """The plan of round `round` (from 0)."""
        return self._plans[round]

    def cut(self, num_rounds: int) -> Schedule:
        """The first `num_rounds` rounds of this schedule, unchanged; all rounds if there are fewer."""
        shorter = copy.copy(self)
        shorter._plans = self._plans[:num_rounds]
        return shorter

    def first_prompt(self, round: int) -> int:
        """Position in the source of the first prompt of a future round: rounds take prompts one after another."""
        start, cursor = self._done
        return cursor + sum(plan.num_prompts for plan in self._plans[start:round])
