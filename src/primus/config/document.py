"""YAML text -> a tree in which every key and value knows its position.

Built from PyYAML's event stream rather than its constructors: the stream is lazy and flat, so hostile nesting, alias
bombs and second documents are refused before they cost anything, and scalars follow ``scalars.resolve``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import yaml

from primus.config.scalars import Scalar, resolve
from primus.config.source import Mark, Source
from primus.config.syntax import explain
from primus.errors import ConfigError, Problem

MAX_DEPTH = 50
MAX_NODES = 100_000
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Node(NamedTuple):
    """A value. ``value`` is a scalar, a list of nodes, or a dict of entries; ``text`` is a scalar as written.
    ``interpolated``: the whole value came from one ``${VAR}``. ``size`` counts the nodes below and itself.
    ``replaced``: what merging put this in the place of."""

    value: Scalar | list[Node] | dict[str, Entry]
    mark: Mark
    text: str = ""
    interpolated: bool = False
    size: int = 1
    replaced: Node | None = None

    def plain(self) -> Any:
        """The value without positions."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, list):
            return [item.plain() for item in self.value]
        return self.value


class Entry(NamedTuple):
    """A key's position and its value."""

    key: Mark
    node: Node


@dataclass
class _Open:
    """A collection whose end has not been seen yet."""

    mark: Mark
    is_map: bool
    anchor: str | None
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    merges: list[Entry] = field(default_factory=list)
    key: tuple[str, Mark] | None = None
    size: int = 1


def parse(text: str, source: Source, *, column: int = 1) -> Node | None:
    """The one document in `text`; None when there is nothing but comments. `column` is where `text` begins in
    ``source.lines``. Raises ConfigError with every problem found up to the first syntax error."""
    return _Builder(source, column - 1).build(text)


class _Builder:
    def __init__(self, source: Source, shift: int) -> None:
        self.source = source
        self.shift = shift
        self.problems: list[Problem] = []
        self.anchors: dict[str, Node | None] = {}
        self.stack: list[_Open] = []
        self.root: Node | None = None

    def build(self, text: str) -> Node | None:
        try:
            documents = 0
            for event in _events(text):
                if isinstance(event, yaml.DocumentStartEvent):
                    documents += 1
                    if documents > 1:
                        self.fail(
                            event, "a second document begins here", "keep one experiment a file; remove the '---'"
                        )
                else:
                    self.take(event)
        except yaml.YAMLError as error:
            self.problems.append(explain(error, text, self.source, self.shift))
            raise ConfigError(problems=self.problems) from None
        if self.problems:
            raise ConfigError(problems=self.problems)
        return self.root

    def mark(self, event: Any) -> Mark:
        start = event.start_mark
        return Mark(self.source, start.line + 1, start.column + 1 + (self.shift if start.line == 0 else 0))

    def fail(self, event: Any, message: str, remedy: str = "") -> None:
        """For problems after which going on makes no sense."""
        self.problems.append(self.mark(event).problem(message, remedy))
        raise ConfigError(problems=self.problems)

    def take(self, event: Any) -> None:
        if isinstance(event, yaml.ScalarEvent):
            if not self.take_key(event):
                self.close(self.scalar(event), event.anchor)
        elif isinstance(event, yaml.AliasEvent):
            self.take_alias(event)
        elif isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent):
            if self.expects_key():
                self.fail(
                    event,
                    "a key must be a word, not a list or a map",
                    "put a key before it, or quotes around it if it is text",
                )
            if len(self.stack) >= MAX_DEPTH:
                self.fail(event, f"nested more than {MAX_DEPTH} levels deep")
            self.refuse_tag(event)
            if event.anchor:
                self.anchors[event.anchor] = None
            self.stack.append(_Open(self.mark(event), isinstance(event, yaml.MappingStartEvent), event.anchor))
        elif isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent):
            done = self.stack.pop()
            value: Any = self.merged(done) if done.is_map else done.items
            self.close(Node(value, done.mark, size=done.size), done.anchor)

    def take_alias(self, event: Any) -> None:
        name = event.anchor
        node = self.anchors.get(name)
        if self.expects_key():
            self.fail(event, "an alias cannot be a key")
        elif name not in self.anchors:
            self.fail(event, f"there is no anchor '&{name}' before this line")
        elif node is None:
            self.fail(event, f"'*{name}' stands inside its own definition")
        else:
            self.close(node, None)

    def expects_key(self) -> bool:
        return bool(self.stack) and self.stack[-1].is_map and self.stack[-1].key is None

    def take_key(self, event: Any) -> bool:
        if not self.expects_key():
            return False
        mark = self.mark(event)
        if event.value == "" and not event.style:
            self.fail(event, "a key is missing before ':'")
        self.stack[-1].key = (event.value, mark)
        return True

    def refuse_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag != "!":
            self.problems.append(
                self.mark(event).problem(f"the tag '{event.tag}' is not supported", "remove it; put text in quotes")
            )

    def scalar(self, event: Any) -> Node:
        mark = self.mark(event)
        value: Scalar = event.value
        if event.tag not in (None, "!", "tag:yaml.org,2002:str"):
            self.refuse_tag(event)
        elif not event.style and event.tag is None:
            try:
                value = resolve(event.value)
            except ValueError as error:
                self.problems.append(mark.problem(str(error)))
        return Node(value, mark, text=event.value)

    def close(self, node: Node, anchor: str | None) -> None:
        """Put a finished value where it belongs."""
        if anchor:
            self.anchors[anchor] = node
        if not self.stack:
            self.root = node
            return
        top = self.stack[-1]
        top.size += node.size
        if top.size > MAX_NODES:
            self.problems.append(
                node.mark.problem(f"more than {MAX_NODES} values", "aliases multiply what they stand for")
            )
            raise ConfigError(problems=self.problems)
        if not top.is_map:
            top.items.append(node)
            return
        assert top.key is not None
        (key, mark), top.key = top.key, None
        if key == "<<":
            top.merges.append(Entry(mark, node))
        elif key in top.entries:
            first = top.entries[key].key
            self.problems.append(
                mark.problem(f"'{key}' is set twice; first in line {first.line}", "keep one of the two")
            )
        else:
            top.entries[key] = Entry(mark, node)

    def merged(self, done: _Open) -> dict[str, Entry]:
        """YAML's ``<<``: keys of the maps named there, unless set here; of several maps the first wins."""
        entries = dict(done.entries)
        for merge in done.merges:
            maps = merge.node.value if isinstance(merge.node.value, list) else [merge.node]
            for node in maps:
                if isinstance(node, Node) and isinstance(node.value, dict):
                    entries = {**node.value, **entries}
                else:
                    self.problems.append(merge.key.problem("'<<' takes a map or a list of maps", "write `<<: *anchor`"))
        return entries


def _events(text: str) -> Iterator[Any]:
    loader = _LOADER(text)
    try:
        while loader.check_event():
            yield loader.get_event()
    finally:
        loader.dispose()
