"""A page of charts and tables in one file that needs no network: what every report shares."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Literal

from primus import __version__
from primus.errors import RunDirectoryError
from primus.events.chart import Chart, read_out, svg

Tone = Literal["running", "complete", "stopped", "failed", "unknown"]
"""Colours of the status beside the heading."""

CHART_STYLE = """\
svg.chart { display: block; width: 100%; height: auto; font: 12px system-ui, sans-serif; touch-action: pan-y; }
.chart text { fill: var(--soft); }
.chart text.title { fill: var(--ink); font-size: 14px; font-weight: 600; }
.chart .title .unit { fill: var(--soft); font-size: 12px; font-weight: 400; }
.chart .grid { stroke: var(--rule); }
.chart .axis { stroke: var(--soft); }
.chart .cursor { stroke: var(--soft); stroke-dasharray: 3 3; }
.chart path { fill: none; stroke-linejoin: round; }
.chart path.raw { stroke: var(--raw); stroke-width: 1; }
.chart path.line { stroke: var(--line); stroke-width: 1.8; }
.chart path.second { stroke: var(--points); stroke-width: 1.8; stroke-dasharray: 5 4; }
.chart line.level { stroke: var(--failed); stroke-dasharray: 7 4; }
.chart text.level { fill: var(--failed); paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.chart .dot { fill: var(--line); }
.chart .dot.points { fill: var(--points); stroke: var(--card); }
.chart .dot.broken { fill: var(--failed); stroke: var(--card); }"""
OPEN_ROWS = 12
"""Longer tables are folded."""
TABLE_ROWS = 200
"""Longest table; of longer ones the newest rows are shown and the rest counted."""


def page(
    *,
    title: str,
    heading: str,
    tone: Tone,
    status: str,
    note: str,
    facts: Mapping[str, str],
    charts: Sequence[Chart],
    sections: Iterable[str],
    source: str,
) -> str:
    """The page as text. facts: label -> figure, with its unit; sections: HTML; all else is plain text. source: what
    the page was made from, one sentence."""
    template = Template(files("primus.events").joinpath("report.html").read_text(encoding="utf-8"))
    figures = [f'<figure>{svg(chart)}<div class="note" hidden></div></figure>' for chart in charts]
    data = json.dumps([read_out(chart) for chart in charts], separators=(",", ":"), ensure_ascii=False)
    return template.substitute(
        title=escape(title),
        heading=escape(heading),
        tone=tone,
        status=escape(status),
        note=escape(note),
        facts="\n".join(f"<div><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>" for k, v in facts.items()),
        chart_style=CHART_STYLE,
        charts="\n".join(figures),
        tables="\n".join(sections),
        data=data.replace("<", "\\u003c"),
        footer=escape(f"Primus {__version__}, {moment(time.time())}. {source}"),
    )


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A heading with the table below it, as HTML; nothing without rows."""
    if not rows:
        return ""
    shown = rows[-TABLE_ROWS:]
    more = f"<p>The newest {len(shown)} of {len(rows):,}.</p>" if len(shown) < len(rows) else ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in shown)
    drawn = f'{more}<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>'
    if len(rows) > OPEN_ROWS:
        return f"<details><summary>{escape(title)} ({len(rows):,})</summary>{drawn}</details>"
    return f"<h2>{escape(title)}</h2>{drawn}"


def split(title: str, parts: Sequence[tuple[str, float, Sequence[str]]]) -> str:
    """A heading, a bar cut in parts, and a line for each below it, as HTML. parts: class (its colour), share of the
    whole, and the cells of its line."""
    cuts = "".join(f'<span class="{name}" style="flex-grow: {share:.6f}"></span>' for name, share, _ in parts if share)
    rows = "\n".join(
        f'<tr><td><i class="{name}"></i></td>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, _, cells in parts
    )
    return f'<h2>{escape(title)}</h2><div class="split">{cuts}</div><table class="split">{rows}</table>'


def moment(when: float | None) -> str:
    """Unix seconds as local date and time."""
    try:
        return "" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when))
    except (OverflowError, ValueError, OSError):
        return "?"


def replace_file(path: Path, text: str) -> None:
    """Write `text`; who reads meanwhile sees the old file or the new one. Raises RunDirectoryError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunDirectoryError(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            remedy="give another place with --output",
        ) from error
