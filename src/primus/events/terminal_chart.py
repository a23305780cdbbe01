"""A curve in a terminal, in braille dots: two by four to a character."""

from __future__ import annotations

import math
from collections.abc import Sequence

from primus.events.chart import finite, log_ticks, ticks
from primus.events.units import count

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_BLANK = 0x2800
POINT = "●"
LEVEL = "╌"


def draw(
    x: Sequence[float],
    y: Sequence[float],
    points: Sequence[tuple[float, float]] = (),
    *,
    width: int,
    height: int,
    ascii_only: bool = False,
    log: bool = False,
    floor: float | None = None,
    level: float | None = None,
) -> list[str]:
    """The lines of a chart at most `width` by `height` characters, axes included. y: the curve; points: drawn over it.
    Values that are not finite are left out; no value at all gives no lines.

    log: y on a logarithmic scale, all values positive; its mark `floor`, if any, reads 0. level: marked all across.
    """
    x, y = finite(x, y)
    points = [point for point in points if math.isfinite(point[1])]
    if log:
        y, points = [math.log10(value) for value in y], [(place, math.log10(value)) for place, value in points]
        level = None if level is None else math.log10(level)
    values = [*y, *(value for _, value in points)]
    if not values:
        return []
    if level is not None:
        values.append(level)
    low, high = min(values), max(values)
    margin = (high - low) * 0.02 or abs(high) * 0.1 or 1.0
    low, high = low - margin, high + margin
    places = [*x, *(place for place, _ in points)]
    left, right = min(places), max(places)
    rows = max(3, height - 2)
    if log:
        marks = {math.log10(value): "0" if value == floor else f"{value:g}" for value in log_ticks(low, high)}
    else:
        marks = {value: f"{value:.6g}" for value in ticks(low, high, max(2, rows // 3))}
    labels = {_row(value, low, high, rows): label for value, label in marks.items()}
    gutter = max(map(len, labels.values()), default=1) + 1
    columns = max(8, width - gutter - 2)

    canvas = [[_BLANK] * columns for _ in range(rows)]
    for column, bottom, top in _spans(x, y, left, right, columns * 2):
        first, last = (_row(value, low, high, rows * 4) for value in (top, bottom))
        for dot in range(first, last + 1):
            canvas[dot // 4][column // 2] |= _DOTS[dot % 4][column % 2]
    cells = [[chr(code) if code != _BLANK else " " for code in row] for row in canvas]
    if ascii_only:
        cells = [["*" if cell != " " else " " for cell in row] for row in cells]
    if level is not None:
        row = cells[_row(level, low, high, rows)]
        row[:] = [("-" if ascii_only else LEVEL) if cell == " " else cell for cell in row]
    for place, value in points:
        cells[_row(value, low, high, rows)][_column(place, left, right, columns)] = "o" if ascii_only else POINT
    edge, corner, rule = ("|", "+", "-") if ascii_only else ("┤", "└", "─")
    wall = "|" if ascii_only else "│"
    lines = [
        f"{labels.get(row, ''):>{gutter}}{edge if row in labels else wall}{''.join(cells[row])}".rstrip()
        for row in range(rows)
    ]
    first_label, last_label = count(left), f"step {count(right)}"
    bottom_line = f"{first_label}{last_label:>{max(0, columns - len(first_label))}}"
    return [*lines, " " * gutter + corner + rule * columns, " " * (gutter + 1) + bottom_line]


def _row(value: float, low: float, high: float, rows: int) -> int:
    return min(rows - 1, max(0, int((high - value) / (high - low) * rows)))


def _column(place: float, left: float, right: float, columns: int) -> int:
    return int((place - left) / ((right - left) or 1) * (columns - 1) + 0.5)


def _spans(
    x: Sequence[float], y: Sequence[float], left: float, right: float, columns: int
) -> list[tuple[int, float, float]]:
    """For each dot column the lowest and highest value the curve takes there, joined to the column before."""
    spans: dict[int, tuple[float, float]] = {}
    before: tuple[int, float] | None = None
    for place, value in zip(x, y, strict=True):
        column = _column(place, left, right, columns)
        known = spans.get(column, (value, value))
        spans[column] = (min(known[0], value), max(known[1], value))
        if before is not None and column > before[0]:
            for between in range(before[0] + 1, column + 1):
                level = before[1] + (value - before[1]) * (between - before[0]) / (column - before[0])
                previous = before[1] + (value - before[1]) * (between - 1 - before[0]) / (column - before[0])
                known = spans.get(between, (level, level))
                middle = (level + previous) / 2
                spans[between] = (min(known[0], middle, level), max(known[1], middle, level))
        before = (column, value)
    return [(column, low, high) for column, (low, high) in spans.items()]
