"""YAML syntax errors in plain words, at the place where the mistake is rather than where the parser noticed it."""

from __future__ import annotations

import yaml

from primus.config.source import Mark, Source, split_lines
from primus.errors import Problem

_INDENTATION = "check the indentation"
_QUOTE = ("the quoted text is not closed", "add the missing quote")
_LIBYAML = {
    "mapping values are not allowed": (
        "a ':' where no key can stand",
        "check the indentation; text that contains ': ' needs quotes",
    ),
    "could not find expected ':'": ("a key without ':'", "write `key: value`, with a space after the colon"),
    "did not find expected key": (
        "this line is neither a key of the section above nor the end of it",
        _INDENTATION,
    ),
    "did not find expected '-' indicator": (
        "this line is neither an item of the list above nor the end of it",
        _INDENTATION,
    ),
    "control characters are not allowed": ("an invisible control character", "delete it"),
}
_NOT_CLOSED = {
    "did not find expected ',' or ']'": ("the list that begins here is not closed", "add the missing ',' or ']'"),
    "did not find expected ',' or '}'": ("the map that begins here is not closed", "add the missing ',' or '}'"),
    "found unexpected end of stream": _QUOTE,
    "found unexpected document indicator": _QUOTE,
}
"""Noticed far behind: these point at the beginning of what is open."""


def explain(error: yaml.YAMLError, text: str, source: Source, shift: int = 0) -> Problem:
    """The Problem behind `error`. `shift`: columns before `text` in the first line of `source`."""
    said = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    noticed, opened = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    place = _mark(noticed, source, shift) if noticed else _at_offset(text, getattr(error, "position", 0), source)
    here, column = place.excerpt, place.column
    first = here[column - 1 : column]
    if "\t" in here[:column] and (not here[: column - 1].strip() or first == "\t"):
        tab = Mark(source, place.line, here.index("\t") + 1)
        return tab.problem("a tab in the indentation", "YAML wants spaces: replace each tab")
    for words, (message, remedy) in _NOT_CLOSED.items():
        if words in said:
            start = _mark(opened, source, shift) if opened else place
            if "${" in place.excerpt or "${" in start.excerpt:
                return place.problem("`${...}` inside [...] or {...} must be in quotes", 'write "${NAME:default}"')
            return start.problem(message, remedy)
    if first == ":" and not here[: column - 1].strip():
        return place.problem("a key is missing before ':'", "write `key: value`")
    if "cannot start any token" in said:
        return place.problem(f"a value cannot begin with '{first}'", "put it in quotes")
    known = next((known for words, known in _LIBYAML.items() if words in said), None)
    return place.problem(*(known or (f"this is not YAML: {said}", "")))


def _mark(mark: yaml.Mark, source: Source, shift: int) -> Mark:
    return Mark(source, mark.line + 1, mark.column + 1 + (shift if mark.line == 0 else 0))


def _at_offset(text: str, offset: int, source: Source) -> Mark:
    """A reader error knows its offset only: libyaml's is in bytes, the Python reader's in characters."""
    before = text.encode()[:offset].decode(errors="ignore") if yaml.__with_libyaml__ else text[:offset]
    lines = split_lines(before)
    return Mark(source, len(lines), len(lines[-1]) + 1)
