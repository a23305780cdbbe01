"""The imported experiment as text: in our keys' order, with line and key of the source behind each value."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from primus.config.emit import flow, text
from primus.config.importing.settings import Setting
from primus.config.keys import keys

WIDEST = 50
"""Columns of text that all comments make room for."""


class Value(NamedTuple):
    """What a key gets. raw: the value as it was written, with its ``${VAR}``. settings: those it came from."""

    value: Any
    settings: tuple[Setting, ...] = ()
    note: str = ""
    raw: str = ""

    @property
    def shown(self) -> str:
        return text(self.raw).replace("$${", "${") if self.raw else flow(self.value)


class Line(NamedTuple):
    """One line of the file. target: the key it sets, or the section it opens; empty for comments."""

    text: str
    comment: str = ""
    target: str = ""


def source(settings: Sequence[Setting]) -> str:
    """``12: train_iters`` or ``7, 8: adam_beta1, adam_beta2``"""
    if not settings:
        return ""
    lines = dict.fromkeys(str(item.key.line) for item in settings)
    return f"{', '.join(lines)}: {', '.join(dict.fromkeys(item.label for item in settings))}"


def lines(head: Iterable[str], extends: Sequence[Value], values: dict[str, Value], tail: Iterable[str]) -> list[Line]:
    """All lines of the file. values: dotted key -> Value, native keys with the backend's name before them."""
    found = [Line(_remark(line)) for line in head]
    if extends:
        names = ", ".join(str(item.value) for item in extends)
        comment = "; ".join(filter(None, (_comment(item) for item in extends)))
        found.append(Line(f"extends: [{names}]", comment, "extends"))
    known = list(keys())
    rank = {key: index for index, key in enumerate(known)}

    def order(key: str) -> tuple[int, str]:
        return (rank[key], "") if key in rank else (rank["env"], key) if key.startswith("env.") else (len(rank), key)

    opened: list[str] = []
    for key in sorted(values, key=order):
        *sections, name = key.split(".", 1) if key.startswith("env.") else key.split(".")
        common = 0
        while common < min(len(opened), len(sections)) and opened[common] == sections[common]:
            common += 1
        for depth in range(common, len(sections)):
            found.append(Line(f"{'  ' * depth}{sections[depth]}:", "", ".".join(sections[: depth + 1])))
        opened = sections
        found.append(Line(f"{'  ' * len(sections)}{text(name)}: {values[key].shown}", _comment(values[key]), key))
    notes = list(tail)
    if notes:
        found += [Line(""), *(Line(_remark(line)) for line in notes)]
    return found


def _comment(value: Value) -> str:
    return printable("; ".join(filter(None, (source(value.settings), value.note))))


def _remark(line: str) -> str:
    return f"# {printable(line)}".rstrip()


def printable(line: str) -> str:
    """`line` without what could end a comment or move a terminal's cursor, whatever a foreign file holds."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in line)


def as_text(found: Sequence[Line]) -> str:
    """The lines with their comments in one column; a long value pushes only its own comment out."""
    widths = [len(line.text) for line in found if line.comment and len(line.text) <= WIDEST]
    column = max(widths, default=0)
    return "".join(
        f"{line.text.ljust(column)}  # {line.comment}\n" if line.comment else f"{line.text}\n" for line in found
    )


def grouped(reasons: Iterable[tuple[str, str]]) -> Iterator[str]:
    """``(reason, what)`` as a list of reasons with what they are for below, in the order of the first of each."""
    groups: dict[str, list[str]] = {}
    for reason, what in reasons:
        groups.setdefault(reason, []).append(what)
    for reason, members in groups.items():
        yield reason
        yield from (f"  {member}" for member in members)
