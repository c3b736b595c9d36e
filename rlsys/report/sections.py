"""The sections of the page that come from `summary.json`: headline, curves, time, rounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from rlsys.report.measures import change, headlines, measure, number, percent
from rlsys.report.svg import Format, Point, line_chart, short, stacked_bars

Summary = Mapping[str, Any]

_STAGES = ("rollout", "feedback", "learn", "sync", "evaluate", "checkpoint")
_WALL = "round"


def headline(summary: Summary) -> str:
    """How every held-out metric changed, and how much work the run was."""
    ends = _ends(summary)
    names = headlines(ends)
    directions = summary.get("directions", {})
    tiles = [_metric_tile(name, *ends[name], direction=directions.get(name, 0)) for name in names]
    rounds = summary["rounds"]
    if rounds:
        responses, examples = (sum(entry[key] for entry in rounds) for key in ("num_responses", "num_examples"))
        wall = np.nansum([number(entry["seconds"].get(_WALL)) for entry in rounds])
        tiles.append(
            _tile("Rounds", str(len(rounds)), f"{responses:,} responses, {examples:,} examples, {wall / 60:.1f} min")
        )
        gap = max(number(entry["sync"]["max_logprob_gap"]) for entry in rounds)
        tiles.append(_tile("Largest sync gap", _known(gap, "{:.1e}"), "nats per token between engines and learner"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def curves(summary: Summary) -> str:
    """Every held-out metric over the rounds, with its interval."""
    steps = [("start", summary["start"].get("eval", {}))]
    steps += [(_label(entry), entry["eval"]) for entry in summary["rounds"]]
    names = dict.fromkeys(name for _, evaluation in steps for name in evaluation)
    cards = []
    for name in names:
        points = [_point(label, evaluation.get(name)) for label, evaluation in steps]
        what = measure(name)
        chart = line_chart(points, title=f"{what.title} over rounds", form=what.form, from_zero=what.from_zero)
        cards.append(_card(what.title, what.unit, chart))
    return _charts(cards)


def training(summary: Summary) -> str:
    """Loss, implicit accuracy if the objective has one, KL, and the number of pairs over the rounds."""
    rounds = summary["rounds"]
    shown: tuple[tuple[str, str, str, Format], ...] = (
        ("loss", "Loss", "mean over the pairs of all epochs", short),
        ("implicit_accuracy", "Implicit accuracy", "share of pairs whose chosen answer has the larger reward", percent),
        ("kl", "KL of the round", "nats per answer, from the policy that answered to the one after the round", short),
        ("num_examples", "Examples", "new training examples", short),
    )
    cards = []
    for key, title, unit, form in shown:
        if rounds and not any(key in entry or key in entry["metrics"] for entry in rounds):
            continue
        points = [_flat_point(str(entry["round"]), _of_training(entry, key)) for entry in rounds]
        zero = key in ("kl", "num_examples")
        cards.append(_card(title, unit, line_chart(points, title=f"{title} over rounds", form=form, from_zero=zero)))
    return _charts(cards)


def time_per_stage(summary: Summary) -> str:
    """Busy seconds of every stage, stacked, and the round's wall-clock time."""
    rounds = summary["rounds"]
    found = dict.fromkeys(name for entry in rounds for name in entry["seconds"] if name != _WALL)
    stages = [name for name in _STAGES if name in found] + [name for name in found if name not in _STAGES]
    stacks = [(name, [number(entry["seconds"].get(name)) for entry in rounds]) for name in stages]
    marks = [number(entry["seconds"].get(_WALL)) for entry in rounds]
    labels = [str(entry["round"]) for entry in rounds]
    chart = stacked_bars(labels, stacks, title="seconds per stage and round", marks=marks)
    keys = "".join(f'<span><i class="k{index % 8}"></i>{escape(name)}</span>' for index, name in enumerate(stages))
    legend = f'<div class="legend">{keys}<span><i class="wall"></i>wall clock</span></div>'
    head = "".join(f"<th>{escape(name)}</th>" for name in [*stages, "wall clock"])
    rows = "".join(
        _row([label, *(_seconds(values[index]) for _, values in stacks), _seconds(marks[index])])
        for index, label in enumerate(labels)
    )
    table = f'<div class="card scroll"><table><tr><th>round</th>{head}</tr>{rows}</table></div>'
    return f'<div class="charts split">{_card("Seconds per round", "", chart + legend)}{table}</div>'


def rounds_table(summary: Summary) -> str:
    """A table with a row per round: the work done, the failures, and the check of its weight update."""
    head = (
        "round", "prompts", "responses", "examples", "replayed", "failed", "staleness", "loss", "right", "KL", "tensors",
        "sent", "sync", "largest gap", "weights",
    )  # fmt: skip
    rows = "".join(_round_row(entry) for entry in summary["rounds"])
    titles = "".join(f"<th>{name}</th>" for name in head)
    return f'<div class="card scroll"><table><tr>{titles}</tr>{rows}</table></div>'


def _round_row(entry: Mapping[str, Any]) -> str:
    sync = entry["sync"]
    failed = ", ".join(f"{count} {what}" for what, count in entry["failed"].items() if count)
    replayed = ", ".join(f"{count:,} {source}" for source, count in entry.get("replayed", {}).items())
    return _row(
        [
            str(entry["round"]),
            f"{entry['num_prompts']:,}",
            f"{entry['num_responses']:,}",
            f"{entry['num_examples']:,}",
            replayed or "0",
            failed or "0",
            str(entry["staleness"]),
            _known(number(entry["loss"]), "{:.4f}"),
            _known(_of_training(entry, "implicit_accuracy"), "{:.1%}"),
            _known(number(entry["kl"]), "{:.3g}"),
            f"{sync['num_tensors']:,}",
            f"{sync['num_bytes'] / 1e6:,.1f} MB",
            _seconds(number(sync["seconds"])),
            _known(number(sync["max_logprob_gap"]), "{:.1e}"),
            f"version {entry['policy_version']}" if entry["accepted"] else "refused",
        ]
    )


def _ends(summary: Summary) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """For every metric of the start: its value there, and in the last accepted round that was evaluated."""
    evaluated = [entry["eval"] for entry in summary["rounds"] if entry["eval"] and entry["accepted"]]
    start = summary["start"].get("eval", {})
    return {name: (value, evaluated[-1][name]) for name, value in start.items() if evaluated and name in evaluated[-1]}


def _of_training(entry: Mapping[str, Any], key: str) -> float:
    """A number of a round, from the round's own fields or from the objective's metrics; NaN if there is none."""
    return number(entry[key] if key in entry else entry["metrics"].get(key))


def _metric_tile(name: str, start: Mapping[str, Any], end: Mapping[str, Any], *, direction: int) -> str:
    what, first, last = measure(name), number(start["value"]), number(end["value"])
    numbers = f"<small>{what.form(first)} →</small> {what.form(last)}"
    better = direction * (last - first)
    kind = "" if better == 0 or math.isnan(better) else "better" if better > 0 else "worse"
    interval = f"[{what.form(number(end['low']))}, {what.form(number(end['high']))}]"
    words = f'<span class="{kind}">{change(name, first, last)}</span> <span class="note">now {interval}</span>'
    return _tile(what.title, numbers, words)


def _tile(name: str, numbers: str, words: str) -> str:
    return (
        f'<div class="card tile"><div class="name">{escape(name)}</div><div class="numbers">{numbers}</div>'
        f'<div class="change">{words}</div></div>'
    )


def _card(title: str, unit: str, body: str) -> str:
    note = f'<p class="note">{escape(unit)}</p>' if unit else ""
    return f'<div class="card"><h3>{escape(title)}</h3>{note}{body}</div>'


def _charts(cards: Sequence[str]) -> str:
    return f'<div class="charts">{"".join(cards)}</div>'


def _point(label: str, interval: Mapping[str, Any] | None) -> Point:
    if interval is None:
        return _flat_point(label, math.nan)
    return Point(label=label, **{end: number(interval[end]) for end in ("value", "low", "high")})


def _flat_point(label: str, value: float) -> Point:
    return Point(label=label, value=value, low=value, high=value)


def _row(cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _seconds(value: float) -> str:
    return _known(value, "{:.1f} s")


def _known(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "n/a"


def _label(entry: Mapping[str, Any]) -> str:
    return str(entry["round"]) if entry["accepted"] else f"{entry['round']} refused"
