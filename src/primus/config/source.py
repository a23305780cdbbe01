"""Where a value came from: the text it stands in, its line and column, and how that is told to a person.

Named tuples rather than dataclasses, here and in the tree: making a dataclass costs a millisecond of every start.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from primus.errors import Problem

Kind = Literal["file", "preset", "override", "default", "model"]


def split_lines(text: str) -> tuple[str, ...]:
    """The lines of `text` as YAML counts them."""
    return tuple(re.split("\r\n|[\n\r\x85\u2028\u2029]", text))


class Source(NamedTuple):
    """One text that values are read from.

    name: what a person knows it by: a path, ``models/llama3.1_8B``, or ``override``.
    place: what stands before ``:line:column`` in an error; a path for files and presets.
    """

    kind: Kind
    name: str
    place: str
    lines: tuple[str, ...] = ()


class Mark(NamedTuple):
    """A position in a source; line and column count from 1."""

    source: Source
    line: int = 1
    column: int = 1

    @property
    def where(self) -> str:
        if self.source.kind in ("file", "preset"):
            return f"{self.source.place}:{self.line}:{self.column}"
        return self.source.place

    @property
    def excerpt(self) -> str:
        return self.source.lines[self.line - 1] if 0 < self.line <= len(self.source.lines) else ""

    def problem(self, message: str, remedy: str = "") -> Problem:
        """A Problem that points here, with the line and its column."""
        excerpt = self.excerpt
        return Problem(self.where, message, remedy, excerpt, self.column if excerpt else 0)

    @property
    def origin(self) -> Origin:
        return Origin(self.source.kind, self.source.name, self)


class Origin(NamedTuple):
    """Why a value is what it is. ``str()`` is short: ``examples/q.yaml:12``, ``preset models/llama3.1_8B``,
    ``override``, ``default``, ``model config.json``."""

    kind: Kind
    name: str = ""
    mark: Mark | None = None

    def __str__(self) -> str:
        if self.kind == "file" and self.mark:
            return f"{self.name}:{self.mark.line}"
        if self.kind in ("preset", "model"):
            return f"{self.kind} {self.name}"
        return self.kind


DEFAULT = Origin("default")
