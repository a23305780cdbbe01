"""Curves as inline SVG: thinned without losing a spike, with axes, units and a legend."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate
from typing import Literal

from primus.events import units

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 42
BUCKETS = 600


@dataclass(frozen=True)
class Series:
    """x ascending; y of the same length, may hold NaN. style: ``raw`` (faint), ``line``, or ``points``."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Literal["raw", "line", "points"]


@dataclass(frozen=True)
class Chart:
    """unit: of the y axis; text: how a value reads; from_zero: whether the axis begins there; log: y on a log scale."""

    title: str
    unit: str
    series: tuple[Series, ...]
    text: Callable[[float], str]
    from_zero: bool = False
    log: bool = False


def thin(x: Sequence[float], y: Sequence[float], buckets: int = BUCKETS) -> tuple[array[float], array[float]]:
    """At most two points a bucket, its lowest and its highest, so that every spike stays; values that are not finite
    are left out."""
    x, y = finite(x, y)
    length = max(1, math.ceil(len(y) / buckets))
    if length <= 2:
        return array("d", x), array("d", y)
    thin_x, thin_y = array("d"), array("d")
    for first in range(0, len(y), length):
        part = y[first : first + length]
        low, high = min(part), max(part)
        for index in sorted({part.index(low), part.index(high)}):
            thin_x.append(x[first + index])
            thin_y.append(part[index])
    return thin_x, thin_y


def smooth(y: Sequence[float], span: int) -> Sequence[float]:
    """Mean over `span` points centred on each (an odd number is made of it); near the ends the window shrinks evenly,
    so the curve begins and ends where the values do. All values finite."""
    half = min(span // 2, (len(y) - 1) // 2)
    sums = [0.0, *accumulate(y)]
    width = 2 * half + 1
    inner = [(high - low) / width for low, high in zip(sums, sums[width:], strict=False)]
    first = [(sums[2 * i + 1]) / (2 * i + 1) for i in range(half)]
    last = [(sums[-1] - sums[-2 * i - 2]) / (2 * i + 1) for i in reversed(range(half))]
    return array("d", [*first, *inner, *last])


def finite(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The points whose y is a number."""
    if all(map(math.isfinite, y)):
        return x, y
    kept = [index for index, value in enumerate(y) if math.isfinite(value)]
    return array("d", [x[index] for index in kept]), array("d", [y[index] for index in kept])


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values that cover [low, high]: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [
        round(index * step, 15 - math.ceil(math.log10(max(abs(low), abs(high), step))))
        for index in range(first, last + 1)
    ]


class _Axis:
    """From values to coordinates of the drawing."""

    def __init__(
        self, values: Iterable[float], start: float, end: float, *, zero: bool = False, log: bool = False
    ) -> None:
        known = list(values)
        low, high = (min(known), max(known)) if known else (1.0, 10.0) if log else (0.0, 1.0)
        self.log = log
        if log:
            low, high = math.log10(low), math.log10(high)
        if zero:
            low, high = min(low, 0.0), max(high, 0.0) * 1.05
        if not high > low:
            spread = abs(high) * 0.1 or 1.0
            low, high = low - spread, high + spread
        self.low, self.high, self.start, self.end = low, high, start, end

    def pad(self, share: float) -> _Axis:
        spread = (self.high - self.low) * share
        self.low, self.high = self.low - spread, self.high + spread
        return self

    def __call__(self, value: float) -> float:
        place = math.log10(value) if self.log else value
        return self.start + (place - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            return ticks(self.low, self.high)
        powers = range(math.floor(self.low), math.ceil(self.high) + 1)
        factors = (1,) if self.high - self.low > 3 else (1, 2, 5)
        found = [factor * 10.0**power for power in powers for factor in factors]
        return [value for value in found if self.low <= math.log10(value) <= self.high]


def svg(chart: Chart, *, style: str = "") -> str:
    """The chart as one ``<svg>`` element; style: CSS for a file of its own (a page brings its own)."""
    thinned = [(series, *thin(series.x, series.y)) for series in chart.series]
    if chart.log:
        thinned = [(s, *_positive(x, y)) for s, x, y in thinned]
    x_axis = _Axis((value for _, x, _ in thinned for value in x), _LEFT, WIDTH - _RIGHT)
    y_axis = _Axis(
        (value for _, _, y in thinned for value in y), HEIGHT - _BOTTOM, _TOP, zero=chart.from_zero, log=chart.log
    )
    if not chart.from_zero:
        y_axis.pad(0.04)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}" data-x="{x_axis.low!r},{x_axis.high!r},{x_axis.start},{x_axis.end}">',
        f"<style>{style}</style>" if style else "",
        *_axes(chart, x_axis, y_axis),
    ]
    for series, x, y in thinned:
        points = [(x_axis(a), y_axis(b)) for a, b in zip(x, y, strict=True)]
        if series.style == "points" or len(points) == 1:
            parts += [f'<circle class="dot {series.style}" cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>' for a, b in points]
        if points and series.style != "points":
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            parts.append(f'<path class="{series.style}" d="M{path}"/>')
    if not any(len(x) for _, x, _ in thinned):
        parts.append(f'<text class="empty" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no data yet</text>')
    parts += _legend(chart)
    parts.append(f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="-9" x2="-9"/></svg>')
    return "\n".join(part for part in parts if part)


def _positive(x: Sequence[float], y: Sequence[float]) -> tuple[array[float], array[float]]:
    kept = [index for index, value in enumerate(y) if value > 0]
    return array("d", [x[index] for index in kept]), array("d", [y[index] for index in kept])


def _axes(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> Iterable[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in y_axis.ticks():
        y = y_axis(value)
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{escape(_tick(value))}</text>'
    for value in x_axis.ticks():
        if value == int(value):
            x = x_axis(value)
            anchor = "end" if x > right - 12 else "middle"
            yield f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="{anchor}">{escape(_tick(value))}</text>'
            yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
    yield f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text class="unit" x="{(right + _LEFT) / 2}" y="{HEIGHT - 6}" text-anchor="middle">optimizer step</text>'
    unit = f'<tspan class="unit" dx="8">{escape(chart.unit)}</tspan>'
    yield f'<text class="title" x="8" y="18">{escape(chart.title)}{unit}</text>'


def _tick(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return units.count(value).replace(".00", "").replace(".0 ", " ")
    return f"{value:.0e}" if abs(value) < 1e-3 and f"{value:.0e}" == f"{value:.6e}" else f"{value:.4g}"


def _legend(chart: Chart) -> Iterable[str]:
    x = WIDTH - _RIGHT
    for series in reversed(chart.series):
        x -= 7 * len(series.label)
        yield f'<text class="legend" x="{x}" y="18">{escape(series.label)}</text>'
        x -= 20
        if series.style == "points":
            yield f'<circle class="dot points" cx="{x + 9}" cy="14" r="3.2"/>'
        else:
            yield f'<path class="{series.style}" style="stroke-width:2.5" d="M{x} 14H{x + 14}"/>'
        x -= 14


def read_out(chart: Chart) -> list[dict[str, object]]:
    """What the page's hover needs of each series: label, the thinned x, and the values as text."""
    found: list[dict[str, object]] = []
    for series in chart.series:
        x, y = thin(series.x, series.y)
        found.append(
            {"label": series.label, "x": [int(value) for value in x], "text": [chart.text(value) for value in y]}
        )
    return found
