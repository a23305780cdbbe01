"""The error screen, at several widths."""

from __future__ import annotations

import io
import time

import pytest

from primus.config.report import render, show
from primus.errors import ConfigError, PrimusError, Problem

LONG = Problem(
    "e.yaml:15:45", "train.steps must be a number, but is 'x'", "see docs", "train: {" + "a: 1, " * 6 + "steps: x}", 52
)


def test_one_problem() -> None:
    error = ConfigError(
        problems=[Problem("e.yaml:3:3", "unknown key 'lrr' in optimizer", "did you mean lr?", "  lrr: 1", 3)]
    )
    assert render(error) == (
        "error: e.yaml:3:3\n  3 |   lrr: 1\n    |   ^^^\n  unknown key 'lrr' in optimizer\n  > did you mean lr?\n"
    )


def test_without_a_place() -> None:
    assert render(PrimusError("no space left on the disk", remedy="free some")) == (
        "error: no space left on the disk\n  > free some\n"
    )


def test_several_are_numbered_and_counted() -> None:
    error = ConfigError(
        problems=[Problem("a:1:1", "one"), Problem("", "two"), Problem("override", "three", "", "x=1", 3)]
    )
    assert render(error) == (
        "error: 3 problems\n\n"
        "1. a:1:1\n   one\n\n"
        "2. two\n\n"
        "3. override\n   | x=1\n   |   ^\n   three\n"
    )  # fmt: skip


@pytest.mark.parametrize("width", [1, 40, 60, 80, 120, 500])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    problems = [
        LONG,
        Problem("e.yaml:1:1", "words " * 60, "more words " * 30, "x" * 3000, 1500),
        Problem("e.yaml:1:99", "m", "", "日本語 " * 40, 99),
        Problem("override", "m", "", "k=" + "v" * 300, 3),
    ]
    for shown in (render(ConfigError(problems=problems), width), render(ConfigError(problems=problems[:1]), width)):
        assert max(_columns(line) for line in shown.splitlines()) <= max(40, min(width, 120))


def test_the_caret_stays_under_its_word_when_a_line_is_cut() -> None:
    shown = render(ConfigError(problems=[LONG]), 50).splitlines()
    line, marker = shown[1], shown[2]
    assert line[marker.index("^")] == "x"
    assert "..." in line


def test_a_giant_line_is_cut_before_anything_else_is_done_with_it() -> None:
    line = "{" + "a: 1, " * 500_000 + "}"
    problems = [Problem(f"f:1:{column}", "m", "", line, column) for column in range(1_000_004, 1_000_304, 6)]
    start = time.process_time()
    shown = render(ConfigError(problems=problems), 80).splitlines()
    assert time.process_time() - start < 1
    assert len(problems) == 50
    quoted, marker = shown[3], shown[4]
    assert quoted.startswith("    1 | ...")
    assert quoted.endswith("...")
    assert quoted[marker.index("^") :].startswith("a: 1, ")


def test_the_caret_counts_wide_characters_and_tabs() -> None:
    wide = render(ConfigError(problems=[Problem("f:1:5", "m", "", "日本: x", 5)])).splitlines()
    assert wide[2].index("^") == wide[1].index("x") + 2
    tab = render(ConfigError(problems=[Problem("f:1:2", "m", "", "\tx: 1", 2)])).splitlines()
    assert tab[2].index("^") == tab[1].index("x")


def test_control_characters_do_not_reach_the_terminal() -> None:
    shown = render(
        ConfigError(problems=[Problem("f\x1b[2J:1:1", "a\x1b[31mb\rc", "x\x07", "k: \x1b[1m", 1)]), 80, color=False
    )
    assert not any(char in shown for char in "\x1b\r\x07")


def test_line_breaks_in_a_message_are_kept() -> None:
    assert render(PrimusError("failed:\n  File x\n    y()")) == "error: failed:\n         File x\n           y()\n"


@pytest.mark.parametrize(("excerpt", "column"), [("", 3), ("ab", 9), ("ab", 0), ("\t", 1), (" " * 200, 150)])
def test_strange_places_do_no_harm(excerpt: str, column: int) -> None:
    assert "m" in render(ConfigError(problems=[Problem("f:1:1", "m", "", excerpt, column)]), 60)


def test_colour_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    error = PrimusError("x")
    terminal, pipe = Terminal(), io.TextIOWrapper(io.BytesIO(), "ascii")
    show(error, terminal)
    assert "\x1b[1;31m" in terminal.getvalue()
    show(PrimusError("ü"), pipe)
    pipe.seek(0)
    assert pipe.read() == "error: \\xfc\n"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    show(error, plain)
    assert plain.getvalue() == "error: x\n"


def _columns(line: str) -> int:
    from unicodedata import east_asian_width

    return sum(2 if east_asian_width(char) in "WF" else 1 for char in line)
