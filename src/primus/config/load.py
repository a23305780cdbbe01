"""The one way from an experiment file to an Experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from primus.config import native, validate
from primus.config.checks import check
from primus.config.document import Entry, Node
from primus.config.experiment import Experiment, Section
from primus.config.keys import fields
from primus.config.merge import merge
from primus.config.overrides import parse_overrides
from primus.config.presets import Loader, read_text
from primus.config.source import DEFAULT, Mark, Origin, Source, split_lines
from primus.config.start import start_from_model
from primus.errors import ConfigError, Problem


@dataclass(frozen=True)
class Resolved:
    """A valid experiment and where each value came from.

    origins: dotted key -> Origin, of every leaf (a list is one leaf), native sections included.
    text: the file as written.
    """

    experiment: Experiment
    origins: dict[str, Origin]
    path: Path
    text: str
    tree: Node = field(repr=False)

    def node(self, key: str) -> Node | None:
        """What the winning layer wrote for the dotted `key`; None when nothing did. Names of environment variables and
        native keys may hold dots themselves."""
        return _find(self.tree, key)

    def mark(self, key: str) -> Mark:
        """Where `key`, or else the section it would stand in, is written; the file's beginning if neither is."""
        return validate.tree_key_mark(self.tree, key)

    def problem(self, key: str, message: str, remedy: str = "") -> Problem:
        """A Problem that points at the line which sets `key`, for PlanError and its like."""
        mark = self.mark(key)
        return mark.problem(message, remedy) if mark != self.tree.mark else Problem(str(self.path), message, remedy)


def _find(node: Node, key: str) -> Node | None:
    if not isinstance(node.value, dict):
        return None
    if key in node.value:
        here: Node = node.value[key].node
        return here
    parts = key.split(".")
    for length in range(1, len(parts)):
        entry = node.value.get(".".join(parts[:length]))
        found = _find(entry.node, ".".join(parts[length:])) if entry else None
        if found is not None:
            return found
    return None


def load(path: Path | str, overrides: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> Resolved:
    """Read the experiment at `path` with all it extends, lay `overrides` over it, and validate.

    environment: for ``${VAR}``; default: this process's. Raises ConfigError with every problem found.
    """
    path = Path(path)
    loader = Loader(os.environ if environment is None else environment)
    over, problems = parse_overrides(overrides)
    try:
        text = read_text(path, str(path))
        source = Source("file", str(path), str(path), split_lines(text))
        tree = loader.read(path, source, text)
    except ConfigError as error:
        raise ConfigError(problems=[*error.problems, *problems]) from None
    more = None
    if over is not None:
        over, more = _take_extends(loader, over)
    # like every path of the command line, one in `more` counts from the current directory
    tree = loader.expand(tree, path.parent, (path.resolve(),), (more, Path()) if more else None).tree
    if over is not None:
        tree = merge(tree, over)._replace(mark=tree.mark)
    unread = {(problem.where, problem.excerpt, problem.column) for problem in loader.problems}
    portable, sections = native.split(tree)
    natives, native_problems = native.check(sections)
    portable, start_problems = start_from_model(portable)
    experiment, found = validate.validate(portable, natives, loader.unread | ({"model"} if start_problems else set()))
    found += start_problems + native_problems
    if experiment is not None:
        found += check(experiment, portable)
    # what could not be interpolated has no value that could be right or wrong
    found = [problem for problem in found if (problem.where, problem.excerpt, problem.column) not in unread]
    problems = [*loader.problems, *found, *problems]
    if problems or experiment is None:
        raise ConfigError(problems=_ordered(problems))
    tree = tree._replace(value={**_entries(tree), **_entries(portable)})
    return Resolved(experiment, dict(_origins(experiment, tree)), path, text, tree)


def _take_extends(loader: Loader, over: Node) -> tuple[Node, Node | None]:
    """``extends=...`` on the command line adds presets behind the file's own; the file's keys still win over them."""
    over = loader.interpolate(over)
    assert isinstance(over.value, dict)
    entry = over.value.get("extends")
    rest = Node({key: item for key, item in over.value.items() if key != "extends"}, over.mark)
    return rest, entry.node if entry else None


def _ordered(problems: list[Problem]) -> list[Problem]:
    """Without repetitions; those of one file in the order of its lines, files in the order they were met."""
    unique = list(dict.fromkeys(problems))
    files: dict[str, int] = {"override": len(unique)}  # the command line comes last

    def place(problem: Problem) -> tuple[int, int, int]:
        parts = problem.where.rsplit(":", 2)
        positioned = len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit()
        file = files.setdefault(parts[0] if positioned else problem.where, len(files))
        return (file, int(parts[1]), int(parts[2])) if positioned else (file, 0, 0)

    return sorted(unique, key=place)


def _entries(node: Node) -> dict[str, Entry]:
    return node.value if isinstance(node.value, dict) else {}


def _origins(experiment: Experiment, tree: Node) -> Iterator[tuple[str, Origin]]:
    yield from _section_origins(experiment, tree, "")
    assert isinstance(tree.value, dict)
    for name in experiment.native:
        yield from _map_origins(tree.value[name].node, f"{name}.")


def _section_origins(section: Section, node: Node | None, prefix: str) -> Iterator[tuple[str, Origin]]:
    entries = node.value if node is not None and isinstance(node.value, dict) else {}
    names = {info.alias or name: name for name, info in type(section).model_fields.items()}
    for name in fields(type(section)):
        if not prefix and name == "native":
            continue
        value: Any = getattr(section, names[name])
        below = entries[name].node if name in entries else None
        if isinstance(value, Section):
            yield from _section_origins(value, below, f"{prefix}{name}.")
        elif isinstance(value, dict) and value and below is not None:
            yield from ((f"{prefix}{name}.{key}", _origin(below, key)) for key in value)
        else:
            yield f"{prefix}{name}", below.mark.origin if below is not None else DEFAULT


def _origin(node: Node, key: str) -> Origin:
    entry = node.value.get(key) if isinstance(node.value, dict) else None
    return entry.node.mark.origin if entry else DEFAULT


def _map_origins(node: Node, prefix: str) -> Iterator[tuple[str, Origin]]:
    assert isinstance(node.value, dict)
    for name, entry in node.value.items():
        if isinstance(entry.node.value, dict) and entry.node.value:
            yield from _map_origins(entry.node, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", entry.node.mark.origin
