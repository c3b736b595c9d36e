"""A weighted sum of several feedbacks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from rlsys import registry
from rlsys.asking.driver import together
from rlsys.contracts import Asking, Feedback
from rlsys.errors import ConfigError
from rlsys.records import RolloutGroup, Verdict


@registry.feedback("weighted")
@dataclass(kw_only=True)
class Weighted:
    """Asks all its parts in common waves. A response's score is the weighted sum of the parts' scores. The parts' scores are
    recorded beside it under the parts' names. A response that lacks one of them has no score.

        feedback=weighted 'feedback.parts={right: {name: yes_no}, clear: {name: text_judge, weight: 0.1}}'
    """

    parts: Any = None
    """The parts under names of any choice: the `name` of a feedback, its `weight` (1 if not given), and its options."""
    seed: int | None = None
    """Root of the parts' seeds; `null` takes the run's seed."""

    def __post_init__(self) -> None:
        if not isinstance(self.parts, Mapping) or not self.parts:
            raise ConfigError("feedback.parts must name at least one feedback, such as {right: {name: yes_no}}")
        for part, options in self.parts.items():
            if part == Verdict.MAIN:
                raise ConfigError(f"feedback.parts: {part!r} is the name of the sum; take another one")
            if not isinstance(options, Mapping) or "name" not in options:
                raise ConfigError(f"feedback.parts.{part} must be such as {{name: yes_no, weight: 1}}, got {options!r}")
            weight = options.get("weight", 1.0)
            if (
                isinstance(weight, bool)
                or not isinstance(weight, (int, float))
                or not math.isfinite(weight)
                or not weight
            ):
                raise ConfigError(f"feedback.parts.{part}.weight must be a finite number other than 0, got {weight!r}")
        _ = self.feedbacks  # made now, so that a mistake in a part is found at once

    @property
    def feedbacks(self) -> dict[str, Feedback]:
        """The parts' plug-ins by their names.

        Raises:
            ConfigError: there is no such feedback, or it does not have an option.
        """
        return {part: self._make(options) for part, options in self.parts.items()}

    @property
    def roles(self) -> tuple[str, ...]:
        """Roles of the engines that the parts ask."""
        return tuple(dict.fromkeys(role for one in self.feedbacks.values() for role in one.roles))

    @property
    def raw_logits(self) -> tuple[str, ...]:
        """Roles whose engine must be opened for raw logits."""
        return tuple(dict.fromkeys(role for one in self.feedbacks.values() for role in getattr(one, "raw_logits", ())))

    def judge(self, group: RolloutGroup) -> Asking[tuple[Verdict, ...]]:
        """One verdict per response."""
        found = yield from together([one.judge(group) for one in self.feedbacks.values()])
        return tuple(self._sum(dict(zip(self.parts, verdicts, strict=True))) for verdicts in zip(*found, strict=True))

    def _sum(self, verdicts: dict[str, Verdict]) -> Verdict:
        scores = {part: verdict.score for part, verdict in verdicts.items() if verdict.score is not None}
        if len(scores) == len(verdicts):
            weights = {part: float(options.get("weight", 1.0)) for part, options in self.parts.items()}
            scores[Verdict.MAIN] = sum(weights[part] * score for part, score in scores.items())
        return Verdict(
            critiques=tuple(critique for verdict in verdicts.values() for critique in verdict.critiques),
            scores=scores,
            claims=tuple(claim for verdict in verdicts.values() for claim in verdict.claims),
            failed=sum(verdict.failed for verdict in verdicts.values()),
        )

    def _make(self, options: Mapping[str, Any]) -> Feedback:
        own = {key: value for key, value in options.items() if key not in ("name", "weight")}
        kind = registry.feedback.get(options["name"])
        if kind is not None and "seed" not in own and any(each.name == "seed" for each in fields(kind)):
            own["seed"] = self.seed
        return registry.feedback.make(options["name"], **own)
