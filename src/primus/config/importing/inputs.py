"""Recognising a foreign file, and reading it into settings.

Three kinds are understood: the reference system's experiment (``modules: pre_trainer: ...``), a YAML map of Megatron's
arguments or MaxText's keys (or of TorchTitan's sections), and a shell script or line with Megatron's flags or MaxText's
``key=value`` words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from primus.config.document import Entry, Node, parse
from primus.config.importing import arguments, assignments
from primus.config.importing.rules import Rule, lookup
from primus.config.importing.settings import Setting
from primus.config.importing.table import HEAD, LAUNCHING, TABLES
from primus.config.keys import keys
from primus.config.presets import read_text
from primus.config.source import Mark, Source, split_lines
from primus.config.suggest import closest
from primus.errors import ConfigError

MODULE = "pre_trainer"
_HELD = ("framework", "config", "model", "overrides", "name")
_OURS = ("train", "model", "data", "optimizer", "parallel", "moe", "checkpoint", "hardware")
"""Sections of an experiment of ours, which hold maps."""


@dataclass
class Input:
    """A foreign file. head: keys beside the engine's own; ``framework``, ``model`` and ``config`` among them.
    anchors: keys that only define what others refer to."""

    path: Path
    kind: Literal["experiment", "map", "arguments"]
    framework: str
    settings: list[Setting] = field(default_factory=list)
    head: list[Setting] = field(default_factory=list)
    anchors: list[Setting] = field(default_factory=list)
    unread: list[Setting] = field(default_factory=list)
    """Keys of other modules."""

    @property
    def words(self) -> str:
        return {
            "experiment": f"an experiment for {self.framework}",
            "map": f"a map of {self.framework} keys",
            "arguments": f"{'MaxText' if self.framework == 'maxtext' else 'Megatron'} arguments",
        }[self.kind]


def read(path: Path, environment: Mapping[str, str]) -> Input:
    """Read the file at `path`. environment: for ``$VAR`` in shell scripts.

    Raises ConfigError when it cannot be read, is not YAML where it should be, or is nothing that can be imported.
    """
    text = read_text(path, str(path))
    source = Source("file", str(path), str(path), split_lines(text))
    if not text.strip():
        raise ConfigError(f"{path} is empty", where=str(path), remedy="name an experiment or arguments to import")
    if _is_script(path, text):
        return _arguments(path, text, source, environment)
    tree = parse(text, source)
    if tree is None or tree.value is None:
        raise ConfigError(f"there is nothing but comments in {path}", where=str(path))
    if isinstance(tree.value, str) and _holds_arguments(tree.value):
        return _arguments(path, text, source, environment)
    if not isinstance(tree.value, dict):
        _refuse(tree.mark, "the file must hold `key: value` lines, Megatron's `--flags`, or MaxText's `key=value`")
    if "modules" in tree.value:
        return _experiment(path, tree.value)
    return _map(path, tree, tree.value)


def _refuse(mark: Mark, message: str, remedy: str = "") -> NoReturn:
    raise ConfigError(problems=[mark.problem(message, remedy)])


def _is_script(path: Path, text: str) -> bool:
    if path.suffix in (".sh", ".bash") or text.startswith("#!"):
        return True
    if path.suffix in (".yaml", ".yml") or not _holds_arguments(text):
        return False
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return re.match(r"['\"]?[\w.-]+['\"]?:(\s|$)", lines[0]) is None


def _holds_arguments(text: str) -> bool:
    return arguments.holds_flags(text) or assignments.holds_pairs(text)


def _arguments(path: Path, text: str, source: Source, environment: Mapping[str, str]) -> Input:
    def rule(name: str) -> Rule | None:
        found = lookup(LAUNCHING | TABLES["megatron"], name)
        return found[0] if found else None

    found = {
        "megatron": arguments.settings(text, source, environment, rule),
        "maxtext": assignments.settings(text, source, environment, TABLES["maxtext"].__contains__),
    }
    counts = {name: sum(item.name in TABLES[name] for item in items) for name, items in found.items()}
    framework = max(counts, key=lambda name: counts[name])
    if not counts[framework]:
        raise ConfigError(
            f"{path} holds no argument of Megatron or MaxText",
            where=str(path),
            remedy="name the script that starts their training, or a file with its arguments",
        )
    return Input(path, "arguments", framework, found[framework])


def _flat(entries: dict[str, Entry], table: Mapping[str, Rule], prefix: str = "") -> Iterator[Setting]:
    """The leaves of nested maps, with dots between the names."""
    for name, entry in entries.items():
        dotted = f"{prefix}{name}"
        if isinstance(entry.node.value, dict) and entry.node.value and dotted not in table:
            yield from _flat(entry.node.value, table, f"{dotted}.")
        else:
            yield Setting(dotted, entry.key, entry.node)


def _map(path: Path, tree: Node, entries: dict[str, Entry]) -> Input:
    """A map without modules: Megatron's arguments, also as its tests keep them, MaxText's keys, or TorchTitan's
    sections."""
    if "MODEL_ARGS" in entries and isinstance(entries["MODEL_ARGS"].node.value, dict):
        inner = {name: entry for name, entry in entries.items() if name not in ("MODEL_ARGS", "ENV_VARS")}
        for wrapper in ("ENV_VARS", "MODEL_ARGS"):
            held = entries[wrapper].node.value if wrapper in entries else {}
            inner |= held if isinstance(held, dict) else {}
        entries = inner
    maps = {name for name, entry in entries.items() if isinstance(entry.node.value, dict)}
    titan = "training" in maps
    if not titan and ("extends" in entries or maps.intersection(_OURS)):
        raise ConfigError(
            f"{path} is an experiment of this system already", where=str(path), remedy=f"primus-cli config check {path}"
        )
    counts = {name: sum(key in TABLES[name] for key in entries) for name in ("megatron", "maxtext")}
    framework = "torchtitan" if titan else max(counts, key=lambda name: counts[name])
    table = TABLES[framework]
    found = [item._replace(name=_plain(item.name)) for item in _flat(entries, table)]
    if not any(lookup(table, item.name) for item in found):
        known = [name for name in entries if name in keys()]
        _refuse(
            tree.mark,
            "nothing here is known to the systems that can be imported",
            f"if it is an experiment of this system: primus-cli config check {path}"
            if known
            else "files with `modules: pre_trainer:`, and Megatron's or MaxText's arguments, can be imported",
        )
    return Input(path, "map", framework, found)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_") if name.startswith("--") else name


def _experiment(path: Path, entries: dict[str, Entry]) -> Input:
    modules = entries["modules"]
    if not isinstance(modules.node.value, dict) or not modules.node.value:
        _refuse(modules.key, "modules must be a map with one module", "e.g. modules: {pre_trainer: {framework: ...}}")
    chosen = _module(modules.node.value)
    module = modules.node.value[chosen]
    inner = module.node.value
    if not isinstance(inner, dict):
        _refuse(module.key, f"modules.{chosen} must be a map", "it needs `framework:` and `overrides:`")
    framework = _framework(chosen, module.key, inner)
    if chosen != MODULE:
        _refuse(module.key, f"the module is {chosen}: only {MODULE} can be imported yet", "fine-tuning comes later")
    table = TABLES[framework]
    result = Input(path, "experiment", framework)
    overrides = inner.get("overrides")
    if overrides is not None and not isinstance(overrides.node.value, dict | None):
        _refuse(overrides.node.mark, "overrides must be a map of keys")
    if overrides is not None and isinstance(overrides.node.value, dict):
        result.settings += _flat(overrides.node.value, table)
    rest = {name: entry for name, entry in inner.items() if name not in _HELD}
    result.settings += _flat(rest, table)
    result.head += [Setting(name, inner[name].key, inner[name].node) for name in _HELD[:3] if name in inner]
    if "name" in inner:
        result.unread.append(Setting("name", inner["name"].key, inner["name"].node, "the module's own name"))
    for name, entry in modules.node.value.items():
        if name != chosen:
            below = entry.node.value if isinstance(entry.node.value, dict) else {}
            result.unread += [
                item._replace(problem=f"another module: only {chosen} is imported")
                for item in (_flat(below, {}, f"{name}.") if below else [Setting(name, entry.key, entry.node)])
            ]
    _around(entries, result)
    return result


def _around(entries: dict[str, Entry], result: Input) -> None:
    """What stands beside ``modules``."""
    used = {item.node.mark for item in result.settings}
    for name, entry in entries.items():
        setting = Setting(name, entry.key, entry.node)
        if name == "modules":
            continue
        leaves = list(_flat({name: entry}, {}))
        if name not in HEAD and used & {item.node.mark for item in leaves}:
            result.anchors.append(setting)
        else:
            result.head += leaves


def _module(modules: dict[str, Entry]) -> str:
    """The module that is imported: the one for pre-training, else the only one with a framework."""
    if MODULE in modules:
        return MODULE
    held = [
        name
        for name, entry in modules.items()
        if isinstance(entry.node.value, dict) and "framework" in entry.node.value
    ]
    return held[0] if held else next(iter(modules))


def _framework(module: str, key: Mark, entries: dict[str, Entry]) -> str:
    if "framework" not in entries:
        _refuse(key, f"modules.{module} names no framework", f"add framework: {' or '.join(TABLES)}")
    node = entries["framework"].node
    name = str(node.value).lower()
    if name in TABLES:
        return name
    near = closest(name, [*TABLES])
    hint = f"did you mean {near}?" if near else f"{', '.join(TABLES)} files can be imported"
    _refuse(node.mark, f"unknown framework '{node.text or node.value}'", hint)
