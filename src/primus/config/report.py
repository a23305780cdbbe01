"""Errors as a person reads them: the place, the source line with a caret, the cause, the remedy.

Plain strings and ANSI codes, so that an error costs no import of rich.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import TextIO
from unicodedata import category, east_asian_width

from primus.errors import PrimusError, Problem

_STYLES = {"error": "1;31", "place": "36", "gutter": "2", "caret": "1;31", "remedy": "32", "message": "1"}
_TOKEN = re.compile(r"\"[^\"]*\"|'[^']*'|\$\{[^}]*\}|[^\s,:\[\]{}]+(?::[^\s,:\[\]{}]+)*")
_INVISIBLE = ("Cc", "Cf", "Cs", "Zl", "Zp")
NARROWEST, WIDEST = 40, 120
MOST = 50
"""Problems shown; the first ones usually explain the others."""


def show(error: PrimusError, stream: TextIO | None = None) -> None:
    """Write `error` to `stream` (default: stderr) as wide as its terminal, in colour only on a terminal."""
    stream = stream or sys.stderr
    terminal = stream.isatty()
    width = shutil.get_terminal_size((100, 24)).columns if terminal else 100
    color = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    text = render(error, width, color)
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def render(error: PrimusError, width: int = 80, color: bool = False) -> str:
    """`error` as lines of at most `width` columns (words longer than a line excepted). Several problems are numbered
    and counted."""
    width = max(NARROWEST, min(width, WIDEST))
    problems = error.problems
    if len(problems) == 1:
        lines = _block(problems[0], "error: ", 2, width, color)
        return "\n".join(lines) + "\n"
    lines = [_paint(f"error: {len(problems)} problems", "error", color)]
    indent = len(str(len(problems))) + 2
    for number, problem in enumerate(problems[:MOST], 1):
        head = f"{number}.".ljust(indent)
        lines += ["", *_block(problem, head, indent, width, color)]
    if len(problems) > MOST:
        lines += ["", f"... and {len(problems) - MOST} more"]
    return "\n".join(lines) + "\n"


def _block(problem: Problem, head: str, indent: int, width: int, color: bool) -> list[str]:
    """One problem. With a place, the place has a line of its own; `head` stands before the first line."""
    margin, head_width = " " * indent, len(head)
    head = _paint(head, "error", color)
    lines: list[str] = []
    where = _clean(problem.where)
    if where:
        lines.append(head + _paint(where, "place", color))
    if problem.excerpt:
        lines += [margin + line for line in _quote(problem, width - indent, color)]
    message = _wrap(problem.message, width - (indent if where else head_width))
    if where:
        lines += [margin + _paint(line, "message", color) for line in message]
    else:
        lines.append(head + _paint(message[0], "message", color))
        lines += [" " * head_width + _paint(line, "message", color) for line in message[1:]]
    if problem.remedy:
        first, *rest = _wrap(problem.remedy, width - indent - 2)
        lines.append(margin + _paint(f"> {first}", "remedy", color))
        lines += [f"{margin}  {_paint(line, 'remedy', color)}" for line in rest]
    return lines


def _quote(problem: Problem, width: int, color: bool) -> list[str]:
    """The source line, cut to fit around the place, and a caret line below it."""
    number = _line_number(problem.where)
    gutter = f"{number} | " if number else "| "
    room = width - len(gutter)
    at = max(0, min(problem.column - 1, len(problem.excerpt)))
    # a line may hold megabytes: only what is near the place is looked at, and that is more than will be shown
    before = max(0, at - 2 * width)
    text = _clean(problem.excerpt[before : at + 2 * width].expandtabs(1))
    at -= before
    token = _TOKEN.match(text, at)
    end = token.end() if token else at + 1
    start = 0
    if _columns(text) > room:
        start = max(0, min(at - room // 3, len(text) - room))
    shown, caret_at, caret_end = text[start:], at - start, end - start
    if start:
        shown = "..." + shown[3:]
    if _columns(shown) > room:
        cut = room - 3
        while _columns(shown[:cut]) > room - 3:
            cut -= 1
        shown, caret_end = f"{shown[:cut]}...", min(caret_end, cut)
    marker = " " * _columns(shown[:caret_at]) + "^" * max(1, _columns(shown[caret_at:caret_end]))
    blank = " " * (len(gutter) - 2) + "| "
    return [_paint(gutter, "gutter", color) + shown, _paint(blank, "gutter", color) + _paint(marker, "caret", color)]


def _line_number(where: str) -> str:
    parts = where.rsplit(":", 2)
    return parts[1] if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit() else ""


def _wrap(text: str, width: int) -> list[str]:
    """`text` in lines of `width` columns; line breaks in it (a traceback, a list) are kept."""
    lines: list[str] = []
    for part in _clean(text, keep="\n").split("\n"):
        indent = part[: len(part) - len(part.lstrip())]
        lines += textwrap.wrap(
            part, max(width, 20), break_long_words=False, break_on_hyphens=False, subsequent_indent=indent
        ) or [""]
    return lines


def _clean(text: str, keep: str = "") -> str:
    """Control characters, which could move the cursor or colour the terminal, made harmless."""
    return "".join(
        char if char in keep or category(char) not in _INVISIBLE else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def _columns(text: str) -> int:
    """Terminal columns of `text`: wide characters count two, combining marks none."""
    return sum(0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1 for char in text)


def _paint(text: str, style: str, color: bool) -> str:
    return f"\033[{_STYLES[style]}m{text}\033[0m" if color and text else text
