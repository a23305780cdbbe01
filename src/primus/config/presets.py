"""``extends``: finding presets and laying them under a file.

A built-in preset is ``AXIS/NAME`` and stands in ``primus/presets/AXIS/NAME.yaml``; a name that ends in ``.yaml`` is a
file beside the one that names it. A preset is a partial experiment and may extend others itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from primus.config.document import Node, parse
from primus.config.experiment import Experiment
from primus.config.interpolate import interpolate
from primus.config.merge import merge
from primus.config.source import Mark, Source, split_lines
from primus.errors import ConfigError, Problem

LARGEST = 4_000_000
DEEPEST = 20
AXES = ("models", "hardware", "recipes")
SECTION_OF_AXIS = {"models": "model", "hardware": "hardware"}
"""Axes whose presets fill one section as a whole: a later one replaces what an earlier one set."""


Place = tuple[str, str, int]
"""Where a problem is: place, source line, column."""


@cache
def root() -> Path:
    """The directory of the built-in presets."""
    return Path(__file__).resolve().parents[1] / "presets"  # importlib.resources would cost 10 ms


def available(axis: str | None = None) -> list[str]:
    """Names of the built-in presets, as ``extends`` takes them."""
    axes = (axis,) if axis else AXES
    return [f"{name}/{path.stem}" for name in axes for path in sorted((root() / name).glob("*.yaml"))]


def read_text(path: Path, shown: str, named_at: Mark | None = None) -> str:
    """The text of a YAML file. Raises ConfigError naming `named_at`, else the file, when it cannot be read."""

    def fail(message: str, remedy: str = "") -> ConfigError:
        return ConfigError(
            problems=[named_at.problem(message, remedy) if named_at else Problem(shown, message, remedy)]
        )

    try:
        if path.is_dir():
            inside = sorted(item.name for item in path.glob("*.yaml"))
            raise fail(
                f"{shown} is a directory",
                f"name a file in it: {', '.join(inside[:5])}" if inside else "name a YAML file",
            )
        with path.open("rb") as stream:
            raw = stream.read(LARGEST + 1)
    except FileNotFoundError:
        beside = {item.stem: item.name for item in path.parent.glob("*.y*ml")} if path.parent.is_dir() else {}
        import difflib

        close = difflib.get_close_matches(path.stem, beside, n=1)
        hint = f"did you mean {Path(shown).with_name(beside[close[0]])}?" if close else "check the path"
        raise fail(f"there is no file {shown}", hint) from None
    except (OSError, ValueError) as error:
        raise fail(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(raw) > LARGEST:
        raise fail(f"{shown} is larger than {LARGEST // 10**6} MB", "is it the right file?")
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise fail(f"{shown} is UTF-16", "save it as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        byte = raw[error.start]
        raise ConfigError(
            f"byte 0x{byte:02x} is not UTF-8", where=f"{shown}:{line}:{column}", remedy="save the file as UTF-8"
        ) from None


class Expanded(NamedTuple):
    """A file laid over all that it extends. ``filled``: axis -> the built-in preset that its section came from."""

    tree: Node
    filled: dict[str, str]


class Loader:
    """Reads one file with all that it extends."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.problems: list[Problem] = []
        self.without_value: set[Place] = set()
        """Where a ``${VAR}`` could not be replaced: already a problem, and what is there means nothing."""
        self.unread: set[str] = set()
        """Sections that a preset which could not be read may have filled."""
        self.read_already: dict[Path, Node | None] = {}
        self.expanded: dict[Path, Expanded] = {}

    def read(self, path: Path, source: Source, text: str) -> Node:
        """The file alone, interpolated. Raises ConfigError when it is no map."""
        tree = parse(text, source)
        if tree is None or tree.value is None:
            raise ConfigError(
                f"{source.place} is empty", where=source.place, remedy="see examples/quickstart.yaml for an experiment"
            )
        if not isinstance(tree.value, dict):
            raise ConfigError(
                problems=[
                    tree.mark.problem(
                        "the file must hold `key: value` lines", "see examples/quickstart.yaml for an experiment"
                    )
                ]
            )
        return self.interpolate(tree)

    def interpolate(self, tree: Node) -> Node:
        """`tree` with each ``${VAR}`` replaced."""
        before = len(self.problems)
        tree = interpolate(tree, self.environment, self.problems)
        self.without_value.update(_place(problem) for problem in self.problems[before:])
        return tree

    def expand(
        self, tree: Node, directory: Path, chain: tuple[Path, ...], extra: tuple[Node, Path] | None = None
    ) -> Expanded:
        """`tree` laid over the presets it extends, whose files are named from `directory`; `extra` (another
        ``extends``, and where its files are named from) comes after its own."""
        assert isinstance(tree.value, dict)
        entries = dict(tree.value)
        entry = entries.pop("extends", None)
        own = tree._replace(value=entries)
        result: Node | None = None
        filled: dict[str, str] = {}
        groups = [(entry.node, directory)] if entry else []
        if extra:
            groups.append(extra)
        for group, beside in groups:
            named: dict[str, str] = {}  # by this list itself: axis -> preset
            for name, mark in self._names(group):
                preset = self._preset(name, mark, beside, chain)
                axis = name.partition("/")[0]
                if preset is None:
                    section = SECTION_OF_AXIS.get(axis)
                    self.unread.update([section] if section else Experiment.model_fields)
                    continue
                for other, chosen in preset.filled.items():
                    direct = name == chosen
                    if other in named and (direct or named[other] != chosen):
                        said = f"two presets of {other}: {named[other]} and {chosen}"
                        instead = f"leave out {named[other]}, or name it after {name} to have it instead"
                        self.problems.append(
                            mark.problem(said, "keep one")
                            if direct
                            else mark.problem(f"{said} (through {name})", instead)
                        )
                    # What another preset set in the section must not be mixed into this one's.
                    if result is not None and (direct or filled.get(other) != chosen):
                        result = _without(result, SECTION_OF_AXIS[other])
                    if direct:
                        named[other] = chosen
                filled |= preset.filled
                result = merge(result, preset.tree) if result else preset.tree
        return Expanded(merge(result, own) if result else own, filled)

    def _names(self, node: Node) -> list[tuple[str, Mark]]:
        items = node.value if isinstance(node.value, list) else [node]
        found = []
        for item in items:
            if isinstance(item, Node) and isinstance(item.value, str):
                found.append((item.value, item.mark))
            elif node.value is not None:
                self.problems.append(
                    node.mark.problem(
                        "`extends` takes the names of presets", "write extends: [models/NAME, hardware/NAME]"
                    )
                )
                return []
        return found

    def _preset(self, name: str, mark: Mark, directory: Path, chain: tuple[Path, ...]) -> Expanded | None:
        if _place(mark.problem("")) in self.without_value:
            return None
        built_in = not name.endswith((".yaml", ".yml"))
        if built_in and not _exists(name):
            self.problems.append(mark.problem(*_unknown(name, directory)))
            return None
        path = root() / f"{name}.yaml" if built_in else directory / os.path.expanduser(name)
        if path not in self.read_already:
            self.read_already[path] = self._read_preset(name if built_in else str(path), path, mark)
        tree = self.read_already[path]
        if tree is None:
            return None
        resolved = path.resolve()
        if resolved in chain:
            route = " -> ".join(item.name for item in (*chain[chain.index(resolved) :], resolved))
            self.problems.append(mark.problem(f"`extends` goes in a circle: {route}", "remove one of them"))
            return None
        if len(chain) > DEEPEST:
            self.problems.append(mark.problem(f"more than {DEEPEST} presets deep", "extend fewer"))
            return None
        if resolved not in self.expanded:
            found = self.expand(tree, path.parent, (*chain, resolved))
            axis = name.partition("/")[0]
            if built_in and axis in SECTION_OF_AXIS:
                found.filled[axis] = name
            self.expanded[resolved] = found
        return self.expanded[resolved]

    def _read_preset(self, name: str, path: Path, mark: Mark) -> Node | None:
        try:
            text = read_text(path, str(path), mark)
            return self.read(path, Source("preset", name, str(path), split_lines(text)), text)
        except ConfigError as error:
            self.problems.extend(error.problems)
            return None


def _place(problem: Problem) -> Place:
    return problem.where, problem.excerpt, problem.column


def _without(tree: Node, section: str) -> Node:
    assert isinstance(tree.value, dict)
    return tree._replace(value={key: entry for key, entry in tree.value.items() if key != section})


def _exists(name: str) -> bool:
    """Whether `name` is a built-in preset, spelt as its file is (also where the file system ignores case)."""
    axis, _, stem = name.partition("/")
    directory = root() / axis
    return axis in AXES and directory.is_dir() and f"{stem}.yaml" in os.listdir(directory)


def _unknown(name: str, directory: Path) -> tuple[str, str]:
    """Message and remedy for a preset that does not exist."""
    import difflib

    known = available()
    lowered = {item.lower(): item for item in known}
    tails = {item.partition("/")[2].lower(): item for item in known}
    wanted = name.lower()
    close = lowered.get(wanted) or tails.get(wanted.rpartition("/")[2])
    if close is None:
        near = difflib.get_close_matches(wanted, lowered, n=1, cutoff=0.7)
        near_tail = difflib.get_close_matches(wanted.rpartition("/")[2], tails, n=1, cutoff=0.6)
        close = lowered[near[0]] if near else tails[near_tail[0]] if near_tail else None
    axis = name.partition("/")[0]
    listed = available(axis) if axis in AXES else known
    remedy = f"did you mean {close}?" if close else f"known: {', '.join(listed) or 'none'}"
    if os.path.isfile(directory / f"{name}.yaml"):
        remedy = f"for your own file write {name}.yaml"
    return f"there is no preset '{name}'", remedy
