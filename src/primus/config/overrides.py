"""``optimizer.lr=3e-4`` on the command line -> a tree like that of a file."""

from __future__ import annotations

import re
from collections.abc import Sequence

from primus.config.document import MAX_DEPTH, Entry, Node, parse
from primus.config.merge import merge
from primus.config.scalars import is_text, resolve
from primus.config.source import Mark, Source
from primus.errors import ConfigError, Problem

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*\Z")


def parse_overrides(overrides: Sequence[str]) -> tuple[Node | None, list[Problem]]:
    """All of `overrides` merged, later ones winning (None without any), and what is wrong with malformed ones."""
    problems: list[Problem] = []
    tree: Node | None = None
    for text in overrides:
        try:
            one = _parse_one(text)
        except ConfigError as error:
            problems.extend(error.problems)
        else:
            tree = one if tree is None else merge(tree, one)
    return tree, problems


def _parse_one(text: str) -> Node:
    source = Source("override", "override", "override", (text,))
    key, equals, value = text.partition("=")
    start = Mark(source)
    if not is_text(text):
        raise ConfigError(problems=[start.problem("the override is not UTF-8 text", "check the encoding of the shell")])
    example = "write key=value, e.g. optimizer.lr=3e-4"
    problem: Problem | None = None
    if not equals:
        problem = start.problem(f"'{text}' is not an override: there is no '='", example)
    elif key.startswith(("-", "+", "~")):
        problem = start.problem(f"an override does not begin with '{key[0]}'", f"write {key.lstrip('-+~')}={value}")
    elif not _KEY.match(key):
        problem = start.problem(f"'{key}' is not a dotted key", example)
    elif key.count(".") >= MAX_DEPTH:
        problem = start.problem(f"'{key[:20]}...' is more than {MAX_DEPTH} levels deep")
    elif not value.strip():
        problem = Mark(source, 1, len(text) + 1).problem(
            f"'{key}=' has no value", f"{key}=null goes back to the default, {key}='\"\"' is empty text"
        )
    if problem:
        raise ConfigError(problems=[problem])
    node = _parse_value(value, source, len(key) + 2)
    column = len(key) + 1
    for part in reversed(key.split(".")):
        column -= len(part) + 1
        node = Node({part: Entry(Mark(source, 1, column + 1), node)}, Mark(source, 1, column + 1))
    return node


def _parse_value(value: str, source: Source, column: int) -> Node:
    """Quoted text, lists and maps are YAML; anything else is one scalar, whatever characters it holds."""
    stripped = value.strip()
    mark = Mark(source, 1, column)
    if stripped[0] in "[{\"'":
        node = parse(value, source, column=column)
        assert node is not None
        return node
    try:
        return Node(resolve(stripped), mark, text=stripped)
    except ValueError as error:
        raise ConfigError(problems=[mark.problem(str(error))]) from None
