"""A merged tree -> an Experiment, or every problem at once, each at its place."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args, get_origin

from pydantic import ValidationError

from primus.config.document import Entry, Node
from primus.config.experiment import Experiment, Section
from primus.config.keys import alternatives, choices, fields, keys, words
from primus.config.source import Mark
from primus.errors import Problem


def plain(node: Node, annotation: Any) -> Any:
    """The value of `node` as pydantic is to see it. In sections a null means the default and is left out; where only
    text is expected, a number that came from ``${VAR}`` is its text, and so is any scalar of ``env``."""
    kinds = alternatives(annotation)
    value = node.value
    if isinstance(value, dict):
        for kind, _ in kinds:
            if isinstance(kind, type) and issubclass(kind, Section):
                known = fields(kind)
                return {
                    key: plain(entry.node, known[key].annotation if key in known else Any)
                    for key, entry in value.items()
                    if entry.node.value is not None or key not in known
                }
            if get_origin(kind) is dict:
                item = get_args(kind)[1]
                return {key: _env_text(entry.node, item) for key, entry in value.items() if entry.node.value is not None}
        return node.plain()
    if isinstance(value, list):
        for kind, _ in kinds:
            if get_origin(kind) in (list, tuple):
                return [plain(item, get_args(kind)[0]) for item in value]
        return node.plain()
    if node.interpolated and value is not None and all(kind is str for kind, _ in kinds) and kinds:
        return node.text
    return value


def _env_text(node: Node, annotation: Any) -> Any:
    scalar = not isinstance(node.value, dict | list)
    return node.text if annotation is str and scalar else plain(node, annotation)


def validate(tree: Node, natives: dict[str, Any]) -> tuple[Experiment | None, list[Problem]]:
    """The experiment of `tree` (without native sections, which are `natives`), or what is wrong with it."""
    data = plain(tree, Experiment)
    problems = [tree_key_mark(tree, "native").problem("'native' is not a section", "name the section after the backend, e.g. torchtitan")] if "native" in data else []
    data["native"] = natives
    try:
        # JSON is the form in which pydantic's strict mode takes lists for tuples and 1 for 1.0, as YAML means them
        experiment = Experiment.model_validate_json(json.dumps(data))
    except ValidationError as error:
        found = [_locate(tree, item) for item in error.errors(include_url=False, include_context=False)]
        return None, problems + list(_problems(tree, found))
    return (None if problems else experiment), problems


def tree_key_mark(tree: Node, dotted: str) -> Mark:
    """Where the key is written; of a key that is not there, its nearest section, else the file itself."""
    mark, node = tree.mark, tree
    for part in dotted.split("."):
        entry = node.value.get(part) if isinstance(node.value, dict) else None
        if entry is None:
            break
        mark, node = entry.key, entry.node
    return mark


@dataclass(frozen=True)
class _Found:
    """One of pydantic's complaints, tied to the tree. ``path`` holds only keys and indices that were written, plus the
    missing or unknown key at the end."""

    path: tuple[str | int, ...]
    type: str
    node: Node
    key: Mark | None


def _locate(tree: Node, item: Any) -> _Found:
    """Follow pydantic's location through the tree, leaving out the tags it adds for members of a union."""
    node, key = tree, None
    path: list[str | int] = []
    location: tuple[str | int, ...] = item["loc"]
    for index, part in enumerate(location):
        value = node.value
        if isinstance(value, dict) and isinstance(part, str) and part in value:
            entry = value[part]
            node, key = entry.node, entry.key
            path.append(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            node = value[part]
            path.append(part)
        elif item["type"] == "missing" and index == len(location) - 1:
            path.append(part)
    return _Found(tuple(path), item["type"], node, key)


def _problems(tree: Node, found: list[_Found]) -> Iterator[Problem]:
    missing: dict[tuple[str | int, ...], list[str]] = {}
    seen: set[tuple[str | int, ...]] = set()
    written = {item.path for item in found}
    for item in found:
        if item.type == "missing":
            missing.setdefault(item.path[:-1], []).append(str(item.path[-1]))
            continue
        # a value that fits no member of a union is reported once, at the deepest place a member got to
        deeper = any(len(path) > len(item.path) and path[: len(item.path)] == item.path for path in written)
        if item.path in seen or deeper:
            continue
        seen.add(item.path)
        if item.type == "extra_forbidden":
            yield _unknown(item)
        else:
            yield _unfit(item)
    for path, names in missing.items():
        yield from _missing(tree, path, names)


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _schema_path(path: tuple[str | int, ...]) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _unknown(item: _Found) -> Problem:
    from primus.config.suggest import unknown_key

    name = str(item.path[-1])
    section = _schema_path(item.path[:-1])
    remedy = unknown_key(section, name) if not any(isinstance(part, int) for part in item.path) else _item_keys(item)
    inside = f" in {section}" if section else ""
    return (item.key or item.node.mark).problem(f"unknown key '{name}'{inside}", remedy)


def _item_keys(item: _Found) -> str:
    from primus.config.experiment import DataSource
    from primus.config.suggest import closest

    near = closest(str(item.path[-1]), DataSource.model_fields)
    return f"did you mean {near}?" if near else f"known here: {', '.join(DataSource.model_fields)}"


def _unfit(item: _Found) -> Problem:
    """A value of the wrong type or out of range."""
    known = keys().get(_schema_path(item.path))
    if known is None:  # inside a list or map: say what pydantic wanted, in the words of the nearest key
        return item.node.mark.problem(f"{dotted(item.path)} {_is(item.node)}, which does not fit here", _parent_words(item.path))
    annotation: Any = known.field.annotation
    expected = known.expected
    if item.path and isinstance(item.path[-1], int):
        inner = [get_args(kind)[0] for kind, _ in alternatives(annotation) if get_origin(kind) in (list, tuple)]
        annotation = inner[0] if inner else annotation
        expected = words(annotation)
    return item.node.mark.problem(f"{dotted(item.path)} must be {expected}, but {_is(item.node)}", _advice(item.node, annotation))


def _parent_words(path: tuple[str | int, ...]) -> str:
    for length in range(len(path) - 1, 0, -1):
        known = keys().get(_schema_path(path[:length]))
        if known:
            return f"{known.dotted} must be {known.expected}"
    return ""


def _is(node: Node) -> str:
    value = node.value
    if isinstance(value, dict):
        return "is a map"
    if isinstance(value, list):
        return f"is a list of {len(value)} values" if len(value) != 1 else "is a list of one value"
    if value is None:
        return "is null"
    source = " (from the environment)" if node.interpolated else ""
    return f"is the text '{_short(value)}'{source}" if isinstance(value, str) else f"is {_short(node.text or str(value))}{source}"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _advice(node: Node, annotation: Any) -> str:
    from primus.config.scalars import resolve
    from primus.config.suggest import closest

    value, kinds = node.value, [kind for kind, _ in alternatives(annotation)]
    if isinstance(value, str):
        allowed = choices(annotation)
        near = closest(value, allowed, cutoff=0.5) if allowed else None
        if near:
            return f"did you mean {near}?"
        if bool in kinds and value.lower() in ("yes", "on", "no", "off", "y", "n"):
            return f"write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
        try:
            numeric = isinstance(resolve(value), int | float) and (int in kinds or float in kinds or bool in kinds)
        except ValueError:
            numeric = False
        if numeric:
            return "remove the quotes"
        if "," in value and (int in kinds or float in kinds):
            return "write digits without commas"
    if isinstance(value, float) and int in kinds and value == value and abs(value) < 2**53 and value == int(value):
        return f"write {int(value)}"
    if isinstance(value, int | float) and kinds and all(kind is str for kind in kinds):
        return "put it in quotes"
    return ""


def _missing(tree: Node, path: tuple[str | int, ...], names: list[str]) -> Iterator[Problem]:
    section = dotted(path)
    mark = tree_key_mark(tree, _schema_path(path))
    if path and isinstance(path[-1], int):
        mark = _locate(tree, {"loc": path, "type": ""}).node.mark
    if section:
        remedy = _preset_hint(section) or f"add {'it' if len(names) == 1 else 'them'} to {section}"
        yield mark.problem(f"{section} lacks {', '.join(names)}", remedy)
        return
    for name in names:
        key = keys()[name]
        written = tree_key_mark(tree, name)
        message = f"{name} is missing: {key.field.description}"
        if written != tree.mark:  # there, but null
            yield written.problem(f"{name} is empty: {key.field.description}", _preset_hint(name))
        else:
            yield Problem(mark.source.place, message.rstrip("."), _preset_hint(name) or f"add `{name}: {_example(name)}`")


def _example(name: str) -> str:
    needed = [key.name for key in keys().values() if key.section == name and key.field.is_required()]
    return f"{{{', '.join(f'{item}: ...' for item in needed)}}}" if needed else "..."


def _preset_hint(section: str) -> str:
    """For the sections that presets fill: which presets there are."""
    from primus.config.presets import available

    axis = {"hardware": "hardware", "model": "models"}.get(section)
    presets = available(axis) if axis else []
    return f"fill it with extends: [{axis}/NAME]; there are {', '.join(name.partition('/')[2] for name in presets)}" if presets else ""
