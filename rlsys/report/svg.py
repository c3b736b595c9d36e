"""Small charts as inline SVG without script, font or further file; colours come from the page's style sheet.

Lengths are in the units of the view box (about one pixel at the size shown).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

WIDTH, HEIGHT = 250.0, 165.0
LEFT, RIGHT, TOP, BOTTOM = 54.0, 8.0, 10.0, 26.0
_SERIES = 8
"""Number of colours in the style sheet (`c0` .. `c7`)."""

Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True)
class Point:
    """A measured value over a label on the x axis; a value that is not finite leaves a gap."""

    label: str
    value: float
    low: float
    high: float


def ticks(low: float, high: float, *, about: int = 4) -> list[float]:
    """Round numbers in `low .. high`, about `about` of them."""
    step = 10.0 ** math.floor(math.log10((high - low) / about))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= about + 1)
    first = math.ceil(low / step - 1e-9)
    return [round(index * step, 12) for index in range(first, math.floor(high / step + 1e-9) + 1)]


def short(value: float) -> str:
    """A number in few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 1e-3:
        return f"{value:.1e}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def line_chart(points: Sequence[Point], *, title: str, form: Format = short, from_zero: bool = False) -> str:
    """A line with its interval as a band.

    Args:
        points: the points from left to right.
        title: the text that a screen reader reads out.
        form: formats the values.
        from_zero: the y axis begins at zero; otherwise it follows the data.
    """
    known = [point for point in points if math.isfinite(point.value)]
    if not known:
        return _empty(title)
    low = min(min(point.low, point.value) for point in known)
    high = max(max(point.high, point.value) for point in known)
    bottom, top = _range(low, high, from_zero=from_zero)
    xs, ys = _slots(len(points)), [_y(point.value, bottom, top) for point in points]
    parts = [_y_axis(bottom, top, form), _x_labels(xs, [point.label for point in points])]
    for run in _unbroken([math.isfinite(point.value) for point in points]):
        upper = [(xs[i], _y(points[i].high, bottom, top)) for i in run]
        lower = [(xs[i], _y(points[i].low, bottom, top)) for i in reversed(run)]
        parts.append(f'<polygon class="band" points="{_path(upper + lower)}"/>')
        parts.append(f'<polyline class="line" points="{_path([(xs[i], ys[i]) for i in run])}"/>')
    for point, x, y in zip(points, xs, ys, strict=True):
        if math.isfinite(point.value):
            interval = "" if point.low == point.high else f" [{form(point.low)}, {form(point.high)}]"
            tip = escape(f"{point.label}: {form(point.value)}{interval}")
            parts.append(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{tip}</title></circle>')
    return _svg(title, parts)


def stacked_bars(
    labels: Sequence[str], stacks: Sequence[tuple[str, Sequence[float]]], *, title: str, marks: Sequence[float]
) -> str:
    """One bar per label, stacked from named parts.

    Args:
        labels: labels of the bars.
        stacks: name and one value per label, from the bottom up; values that are not finite count as zero.
        title: the text that a screen reader reads out.
        marks: one value per label, drawn as a line across its bar; a value that is not finite draws none.
    """
    heights = np.nan_to_num(np.array([values for _, values in stacks], dtype=float).reshape(len(stacks), len(labels)))
    known = [mark for mark in marks if math.isfinite(mark)]
    highest = max([*heights.sum(axis=0).tolist(), *known], default=0.0)
    if highest <= 0:
        return _empty(title)
    bottom, top = _range(0.0, highest, from_zero=True)
    xs, width = _slots(len(labels)), _bar_width(len(labels))
    parts = [_y_axis(bottom, top, short), _x_labels(xs, labels)]
    floor = np.zeros(len(labels))
    for index, (name, _) in enumerate(stacks):
        for x, label, base, height in zip(xs, labels, floor, heights[index], strict=True):
            y = _y(base + height, bottom, top)
            tip = escape(f"{label}, {name}: {height:.1f} s")
            parts.append(
                f'<rect class="c{index % _SERIES}" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{_y(base, bottom, top) - y:.1f}"><title>{tip}</title></rect>'
            )
        floor = floor + heights[index]
    for x, label, mark in zip(xs, labels, marks, strict=True):
        if math.isfinite(mark):
            y, half = _y(mark, bottom, top), width / 2 + 4
            tip = escape(f"{label}, wall clock: {mark:.1f} s")
            parts.append(
                f'<line class="mark" x1="{x - half:.1f}" x2="{x + half:.1f}" y1="{y:.1f}" y2="{y:.1f}">'
                f"<title>{tip}</title></line>"
            )
    return _svg(title, parts)


def histogram(values: np.ndarray, edges: np.ndarray, *, title: str) -> str:
    """Counts of `values` [N] in the bins between `edges` [K + 1]."""
    counts, _ = np.histogram(values, bins=edges)
    if counts.sum() == 0:
        return _empty(title)
    bottom, top = _range(0.0, float(counts.max()), from_zero=True)
    span = float(edges[-1] - edges[0])
    place = [LEFT + (WIDTH - LEFT - RIGHT) * float(edge - edges[0]) / span for edge in edges]
    parts = [_y_axis(bottom, top, short)]
    for index, count in enumerate(counts):
        y = _y(float(count), bottom, top)
        tip = f"{short(float(edges[index]))} to {short(float(edges[index + 1]))}: {count}"
        parts.append(
            f'<rect class="c0" x="{place[index] + 0.5:.1f}" y="{y:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
            f'width="{max(place[index + 1] - place[index] - 1, 0.5):.1f}"><title>{tip}</title></rect>'
        )
    for tick in ticks(float(edges[0]), float(edges[-1])):
        x = LEFT + (WIDTH - LEFT - RIGHT) * (tick - float(edges[0])) / span
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{short(tick)}</text>'
        )
    return _svg(title, parts)


def bin_edges(samples: Sequence[np.ndarray], *, bins: int = 24, include: Sequence[float] = ()) -> np.ndarray:
    """Common bins for several samples: float [bins + 1], which cover all values and those of `include`."""
    if not sum(map(len, samples)):
        return np.linspace(0.0, 1.0, bins + 1)
    values = np.concatenate([*samples, np.asarray(include, float)])
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9 * max(1.0, abs(high)):
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _svg(title: str, parts: Sequence[str]) -> str:
    name = escape(title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _empty(title: str) -> str:
    return _svg(title, [f'<text class="tick" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data</text>'])


def _range(low: float, high: float, *, from_zero: bool) -> tuple[float, float]:
    if from_zero:
        low = min(low, 0.0)
    if high - low < 1e-12 * max(1.0, abs(high)):
        room = abs(high) * 0.1 or 1.0
        low, high = (low if from_zero else low - room), high + room
    room = (high - low) * 0.08
    return (low if from_zero else low - room), high + room


def _y(value: float, bottom: float, top: float) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - bottom) / (top - bottom)


def _slots(count: int) -> list[float]:
    width = (WIDTH - LEFT - RIGHT) / max(count, 1)
    return [LEFT + width * (index + 0.5) for index in range(count)]


def _bar_width(count: int) -> float:
    return min(34.0, 0.66 * (WIDTH - LEFT - RIGHT) / max(count, 1))


def _y_axis(bottom: float, top: float, form: Format) -> str:
    parts = []
    for tick in ticks(bottom, top):
        y = _y(tick, bottom, top)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{escape(form(tick))}</text>')
    return "".join(parts)


def _x_labels(xs: Sequence[float], labels: Sequence[str]) -> str:
    every = max(1, math.ceil(len(labels) / 7))
    shown = [(x, label) for index, (x, label) in enumerate(zip(xs, labels, strict=True)) if index % every == 0]
    y = HEIGHT - BOTTOM + 16
    return "".join(
        f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{escape(label)}</text>' for x, label in shown
    )


def _unbroken(known: Sequence[bool]) -> list[list[int]]:
    runs: list[list[int]] = []
    for index, present in enumerate(known):
        if not present:
            continue
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
