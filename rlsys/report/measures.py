"""How the page names, formats and judges held-out metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from rlsys.report.svg import Format, short


def percent(value: float) -> str:
    """A share as a percentage."""
    return f"{100 * value:.1f} %"


@dataclass(frozen=True, kw_only=True)
class Measure:
    """The properties of a metric that the page needs."""

    title: str
    unit: str
    form: Format = percent
    relative: bool = False
    """Whether its change is shown in per cent of the start instead of in points or units."""
    from_zero: bool = False


MEASURES = {
    "chair_i": Measure(
        title="CHAIR_i", unit="share of mentioned objects that are not in the image; lower is better",
        relative=True, from_zero=True,
    ),
    "chair_s": Measure(
        title="CHAIR_s", unit="share of responses with at least one object that is not in the image; lower is better",
        relative=True, from_zero=True,
    ),
    "recall": Measure(title="Object recall", unit="share of the image's objects that are mentioned"),
    "mean_length": Measure(title="Mean length", unit="words per response", form=short, relative=True),
    "chair_s_refined": Measure(
        title="CHAIR_s, refined", unit="the same, among responses that mention any object; lower is better",
        relative=True, from_zero=True,
    ),
    "false_position": Measure(
        title="False positions", unit="share of stated positions of real objects that are wrong; lower is better",
        relative=True, from_zero=True,
    ),
    "unparsable": Measure(
        title="Unparsable", unit="share of responses that could not be read, or not all of them; lower is better",
        from_zero=True,
    ),
    "partner_share": Measure(
        title="Partners among the false", unit="share of false objects that often appear beside a real one",
    ),
    "accuracy": Measure(title="Yes-or-no accuracy", unit="share of yes-or-no questions answered rightly"),
    "f1": Measure(title="Yes-or-no F1", unit="of the answer yes"),
    "yes_ratio": Measure(title="Yes ratio", unit="share of questions answered with yes"),
    "win_rate": Measure(title="Win rate", unit="mean probability that the judge prefers the response to the baseline's"),
    "refusal_share": Measure(title="Refusals", unit="share of responses that decline to help; lower is better", from_zero=True),
    "judge_failed": Measure(title="Not compared", unit="share of prompts without both comparisons", from_zero=True),
}  # fmt: skip


HEADLINE = ("chair_i", "chair_s", "recall", "win_rate", "mean_length", "accuracy", "f1")
"""Metrics that come first on the page, where they exist."""


def measure(name: str) -> Measure:
    """The named metric; an unknown metric is shown unchanged under its own name. `scenes.chair_i` is the metric `chair_i` of
    the evaluation `scenes`, in a run where another evaluation has such a metric too.
    """
    evaluation, _, metric = name.rpartition(".")
    found = MEASURES.get(metric, Measure(title=metric.replace("_", " "), unit="", form=short))
    return replace(found, title=f"{found.title} ({evaluation})") if evaluation else found


def headlines(names: Iterable[str]) -> list[str]:
    """The metrics that come first on the page, in the order of `HEADLINE`; if none of these was measured, the first few."""
    names = list(names)
    found = [name for metric in HEADLINE for name in names if name.rpartition(".")[2] == metric]
    return found or names[: len(HEADLINE)]


def number(value: float | None) -> float:
    """A number of `summary.json`, where `null` stands for a number that is not finite."""
    return math.nan if value is None else float(value)


def change(name: str, start: float, end: float) -> str:
    """The change from start to end, as text."""
    what = measure(name)
    if what.relative:
        return f"{100 * (end / start - 1):+.0f} %" if start else "from zero"
    if what.form is percent:
        return f"{100 * (end - start):+.1f} points"
    return f"{end - start:+.3g}"
