"""Curves as inline SVG: thinned without losing a spike, with axes, units and a legend."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from typing import Literal

from primus.events import units

WIDTH, HEIGHT = 720, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 34, 42
BUCKETS = 600


Style = Literal["raw", "line", "second", "points", "broken"]
_DOTS = ("points", "broken")


@dataclass(frozen=True)
class Series:
    """What is drawn: finite values over ascending x. style ``raw`` is faint, ``second`` dashed so that what it
    covers shows; ``points`` and ``broken``, which alarms, are dots."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: Style

    @classmethod
    def of(cls, label: str, x: Sequence[float], y: Sequence[float], style: Style) -> Series:
        """From any number of values, NaN and infinity among them; thinned."""
        return cls(label, *thin(*finite(x, y)), style)


@dataclass(frozen=True)
class Chart:
    """unit: of the y axis; text: how a value reads; from_zero: whether the axis begins there; log: y on a log scale,
    whose lowest mark ``floor``, if any, stands for 0: there belongs what a log scale has no place for. level: a value
    marked all across, and its name; steps: what the x axis spans, if not just the values; empty: what is said instead
    of values."""

    title: str
    unit: str
    series: tuple[Series, ...]
    text: Callable[[float], str]
    from_zero: bool = False
    log: bool = False
    floor: float | None = None
    level: tuple[float, str] | None = None
    steps: tuple[float, float] | None = None
    empty: str = "no data yet"


def thin(x: Sequence[float], y: Sequence[float], buckets: int = BUCKETS) -> tuple[Sequence[float], Sequence[float]]:
    """At most two points a bucket, its lowest and its highest, so that every spike stays. All values finite."""
    length = max(1, math.ceil(len(y) / buckets))
    if length <= 2:
        return x, y
    thin_x, thin_y = array("d"), array("d")
    for first in range(0, len(y), length):
        part = list(y[first : first + length])
        for index in sorted({part.index(min(part)), part.index(max(part))}):
            thin_x.append(x[first + index])
            thin_y.append(part[index])
    return thin_x, thin_y


def smooth(x: Sequence[float], y: Sequence[float], span: int) -> tuple[Sequence[float], Sequence[float]]:
    """Mean over the `span` points around each (an odd number), at no more places than can be drawn. Near the ends the
    window shrinks evenly, so the curve begins and ends where the values do. All values finite."""
    sums = list(accumulate(y, initial=0.0))
    every, last = max(1, len(y) // (2 * BUCKETS)), len(y) - 1
    smooth_x, smooth_y = array("d"), array("d")
    for centre in sorted({*range(0, len(y), every), last} if len(y) else set()):
        half = min(span // 2, centre, last - centre)
        smooth_x.append(x[centre])
        smooth_y.append((sums[centre + half + 1] - sums[centre - half]) / (2 * half + 1))
    return smooth_x, smooth_y


def finite(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """The points whose y is a number."""
    if math.isfinite(sum(y)):  # quicker than asking each
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


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between the powers of ten `low` and `high`: 1, 2 and 5 times a power, or powers alone when there
    are many."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    factors, every = (1, 2, 5) if high - low <= 3 else (1,), 1 + len(powers) // 12
    found = [factor * 10.0**power for power in powers if power % every == 0 for factor in factors]
    return [value for value in found if low <= math.log10(value) <= high]


class _Axis:
    """From values to coordinates of the drawing."""

    def __init__(
        self, values: Sequence[float], start: float, end: float, *, zero: bool = False, log: bool = False
    ) -> None:
        low, high = (min(values), max(values)) if values else (1.0, 10.0) if log else (0.0, 1.0)
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
        return log_ticks(self.low, self.high) if self.log else ticks(self.low, self.high)


def svg(chart: Chart, *, style: str = "") -> str:
    """The chart as one ``<svg>`` element; style: CSS for a file of its own (a page brings its own)."""
    shown = [_positive(series) if chart.log else series for series in chart.series]
    x_axis = _Axis([*(chart.steps or ()), *(value for series in shown for value in series.x)], _LEFT, WIDTH - _RIGHT)
    values = [value for series in shown for value in series.y]
    marked = [*values, chart.level[0]] if chart.level else values
    y_axis = _Axis(marked, HEIGHT - _BOTTOM, _TOP, zero=chart.from_zero, log=chart.log)
    if not chart.from_zero:
        y_axis.pad(0.04)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(chart.title)}" data-x="{x_axis.low!r},{x_axis.high!r},{x_axis.start},{x_axis.end}">',
        f"<style>{style}</style>" if style else "",
        *_axes(chart, x_axis, y_axis),
    ]
    for series in shown:
        points = [(x_axis(a), y_axis(b)) for a, b in zip(series.x, series.y, strict=True)]
        dots = series.style in _DOTS
        if dots or len(points) == 1:
            parts += [f'<circle class="dot {series.style}" cx="{a:.1f}" cy="{b:.1f}" r="3.2"/>' for a, b in points]
        if points and not dots:
            path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
            parts.append(f'<path class="{series.style}" d="M{path}"/>')
    if not values:
        parts.append(
            f'<text class="empty" x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">{escape(chart.empty)}</text>'
        )
    if chart.level:
        parts += _level(*chart.level, y_axis)
    parts += _legend(chart)
    parts.append(f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" x1="-9" x2="-9"/></svg>')
    return "\n".join(part for part in parts if part)


def _positive(series: Series) -> Series:
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if y > 0]
    return replace(series, x=[x for x, _ in kept], y=[y for _, y in kept])


def _axes(chart: Chart, x_axis: _Axis, y_axis: _Axis) -> Iterable[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    for value in y_axis.ticks():
        y, label = y_axis(value), "0" if value == chart.floor else escape(_tick(value))
        yield f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text x="{_LEFT - 7}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
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


def _level(value: float, name: str, y_axis: _Axis) -> Iterable[str]:
    y, right = y_axis(value), WIDTH - _RIGHT
    yield f'<line class="level" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
    baseline = y + 14 if y < _TOP + 14 else y - 5  # its name must not run into the title
    yield f'<text class="level" x="{right - 4}" y="{baseline:.1f}" text-anchor="end">{escape(name)}</text>'


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
        if series.style in _DOTS:
            yield f'<circle class="dot {series.style}" cx="{x + 9}" cy="14" r="3.2"/>'
        else:
            yield f'<path class="{series.style}" style="stroke-width:2.5" d="M{x} 14H{x + 14}"/>'
        x -= 14


def read_out(chart: Chart) -> list[dict[str, object]]:
    """What the page's hover needs of each series: label, x, and the values as text."""
    return [
        {"label": s.label, "x": [int(value) for value in s.x], "text": [chart.text(value) for value in s.y]}
        for s in chart.series
    ]
