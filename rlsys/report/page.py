"""The whole page: a single file that contains no external address and no script."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from rlsys.report.examples import Mark, example_html
from rlsys.report.gather import RoundView
from rlsys.report.sections import curves, headline, rounds_table, time_per_stage, training
from rlsys.report.svg import bin_edges, histogram

_MOST_HISTOGRAMS = 12

_CURVES = (
    "Measured on held-out prompts before the first round (start) and after every round. "
    "The band is the bootstrap 95 % interval."
)
_TIME = (
    "Busy seconds of each stage, stacked. The stages of a round overlap, so the stack may stand above the wall clock; "
    "stages of several workers count the mean over the workers."
)
_SCORES = "Scores the judge gave to the responses of each round, in its own units; higher is better. The same bins throughout."
_MARGINS = "Score of the chosen response minus score of the rejected one, over the pairs of each round, in score units."
_ROUNDS = (
    "Every round, and the proof of its weight update: the largest difference between the log-probabilities of engines "
    "and learner on the probe sequences, in nats per token."
)
_EXAMPLES = "Prompts spread over the rounds, with every distinct response, the judge's critique, and its score."
_TRUTH = (
    ' Claims are checked against the scene for this page alone: <mark class="true">true</mark>, '
    '<mark class="false">not true</mark>.'
)
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    name: str, summary: Mapping[str, Any], views: Sequence[RoundView], *, config: str | None = None, mark: Mark | None
) -> str:
    """The report as HTML.

    Args:
        name: name of the run.
        summary: content of `summary.json`.
        views: rounds of the journal.
        config: the configuration as text; the summary's configuration if `None`.
        mark: see `examples.Mark`.
    """
    shown = [example for view in views for example in view.examples]
    settings = config if config is not None else json.dumps(summary["config"], indent=2, ensure_ascii=False)
    sections = [
        ("curves", "Held-out metrics", _CURVES, curves(summary)),
        ("training", "Training", "What the learner saw, round by round.", training(summary)),
        ("time", "Time", _TIME, time_per_stage(summary)),
        ("scores", "Scores", _SCORES, _histograms(views, "scores", "responses", ())),
        ("margins", "Margins", _MARGINS, _histograms(views, "margins", "pairs", (0.0,))),
        ("rounds", "Rounds and weight updates", _ROUNDS, rounds_table(summary)),
        (
            "examples",
            f"{len(shown)} examples",
            _EXAMPLES + (_TRUTH if mark else ""),
            "".join(example_html(example, mark=mark) for example in shown),
        ),
        (
            "config",
            "Configuration",
            "",
            f'<details class="card"><summary>show</summary><pre>{escape(settings)}</pre></details>',
        ),
    ]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _, _ in sections)
    body = "".join(
        f'<section id="{key}"><h2>{title}</h2><p class="caption">{caption}</p>{content}</section>'
        for key, title, caption, content in sections
    )
    stack = " · ".join(f"{escape(package)} {escape(version)}" for package, version in summary["versions"].items())
    style = resources.files("rlsys.report").joinpath("style.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(name)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>'
        f'<body><header><h1>{escape(name)}</h1><p class="note">{stack}</p><nav>{links}</nav></header>'
        f"<main>{headline(summary)}{body}</main></body></html>\n"
    )


def _histograms(views: Sequence[RoundView], field: str, what: str, include: Sequence[float]) -> str:
    if len(views) > _MOST_HISTOGRAMS:
        places = np.linspace(0, len(views) - 1, _MOST_HISTOGRAMS).round().astype(int)
        views = [views[place] for place in places]
    edges = bin_edges([getattr(view, field) for view in views], include=include)
    cards = []
    for view in views:
        values = getattr(view, field)
        mean = f", mean {values.mean():.2f}" if len(values) else ""
        chart = histogram(values, edges, title=f"{field} of round {view.round}")
        note = f'<p class="note">{len(values):,} {what}{mean}</p>'
        cards.append(f'<div class="card"><h3>round {view.round}</h3>{note}{chart}</div>')
    return f'<div class="charts">{"".join(cards)}</div>'
