"""pydantic's complaints in plain words: what the key must be, what it is, what to do. Only read when there are some."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any, get_args, get_origin

from primus.config.document import Node
from primus.config.experiment import DataSource, Words
from primus.config.keys import alternatives, choices, fields, keys, words
from primus.config.presets import SECTION_OF_AXIS, available
from primus.config.scalars import resolve
from primus.config.suggest import closest, unknown_key
from primus.config.validate import Found, locate, tree_key_mark
from primus.errors import Problem

Path = tuple[str | int, ...]
MOST_GUESSES = 100
"""A guess takes milliseconds; a file of another program may hold thousands of unknown keys."""


def describe(tree: Node, found: list[Found], unread: Collection[str] = ()) -> list[Problem]:
    """A Problem for each place that is wrong in `tree`, but not for what the sections `unread` lack."""
    problems: list[Problem] = []
    missing: dict[Path, list[str]] = {}
    meant: set[Path] = set()
    seen: set[Path] = set()
    paths = [item.path for item in found]
    backends = _backends() if any(item.type == "extra_forbidden" and len(item.path) == 1 for item in found) else []
    inner = {path[:length] for path in paths for length in range(len(path))}
    for item in found:
        if item.type == "missing":
            missing.setdefault(item.path[:-1], []).append(str(item.path[-1]))
            continue
        # a value that fits no member of a union is reported once, at the deepest place a member got to
        if item.path in seen or item.path in inner:
            continue
        seen.add(item.path)
        if item.type == "extra_forbidden":
            problem = _unknown(item, backends, guess=len(problems) < MOST_GUESSES)
            meant.add((*item.path[:-1], problem.remedy.removeprefix("did you mean ").rstrip("?")))
        else:
            problem = _unfit(item)
        problems.append(problem)
    for path, names in missing.items():
        # a key that is only misspelt has been reported already
        lacking = [name for name in names if (*path, name) not in meant and str((*path, name)[0]) not in unread]
        if lacking:
            problems += _missing(tree, path, lacking)
    return problems


def dotted(path: Path) -> str:
    """``data.train[0].path``"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")


def _schema_path(path: Path) -> str:
    return ".".join(part for part in path if isinstance(part, str))


def _backends() -> list[str]:
    from primus.backends import registry

    return registry.names()


def _unknown(item: Found, backends: list[str], *, guess: bool) -> Problem:
    name, section = str(item.path[-1]), item.path[:-1]
    inside = f" in {dotted(section)}" if section else ""
    remedy = ""
    if any(isinstance(part, int) for part in section):
        near = closest(name, fields(DataSource))
        remedy = f"did you mean {near}?" if near else f"known here: {', '.join(fields(DataSource))}"
    elif guess:
        remedy = unknown_key(_schema_path(section), name, backends)
    return (item.key or item.node.mark).problem(f"unknown key '{_short(name)}'{inside}", remedy)


def _unfit(item: Found) -> Problem:
    """A value of the wrong type or out of range."""
    annotation, metadata = _annotation(item.path)
    expected = words(annotation, metadata)
    message = f"{dotted(item.path)} must be {expected}, but {_is(item.node)}"
    remedy = _advice(item.node, annotation, metadata) or _preset_meant(item)
    return item.node.mark.problem(message, remedy)


def _preset_meant(item: Found) -> str:
    """``hardware: MI300X`` is understood, if not accepted."""
    axis = next((axis for axis, filled in SECTION_OF_AXIS.items() if (filled,) == item.path), None)
    if axis is None or not isinstance(item.node.value, str):
        return ""
    near = closest(item.node.value.rpartition("/")[2], [name.partition("/")[2] for name in available(axis)])
    return f"for a preset write extends: [{axis}/{near}]" if near else _preset_hint(item.path[0])


def _annotation(path: Path) -> tuple[Any, list[Any]]:
    """The type that belongs at `path`, found by walking from its key through lists and maps."""
    length = next(
        n for n in range(len(path), 0, -1) if _schema_path(path[:n]) in keys() and path[n - 1] == str(path[n - 1])
    )
    field = keys()[_schema_path(path[:length])].field
    annotation, metadata = field.annotation, list(field.metadata)
    for part in path[length:]:
        kinds = [kind for kind, _ in alternatives(annotation)]
        if isinstance(part, int):
            wanted = next(kind for kind in kinds if get_origin(kind) in (list, tuple))
            annotation, metadata = get_args(wanted)[0], []
        elif DataSource in kinds:
            inner = fields(DataSource)[part]
            annotation, metadata = inner.annotation, list(inner.metadata)
        else:
            key_type, value_type = get_args(next(kind for kind in kinds if get_origin(kind) is dict))
            fits = part in choices(key_type) or key_type is str
            annotation, metadata = (value_type, []) if fits else (key_type, [])
    return annotation, metadata


def _is(node: Node) -> str:
    value = node.value
    if isinstance(value, dict):
        return "is a map"
    if isinstance(value, list):
        return f"is a list of {len(value)}" if value else "is an empty list"
    if value is None:
        return "is null"
    source = " (from the environment)" if node.interpolated else ""
    if isinstance(value, str):
        return f"is the text '{_short(value)}'{source}" if value else f"is empty text{source}"
    return f"is {_short(node.text or str(value))}{source}{_beyond_floats(node)}"


def _beyond_floats(node: Node) -> str:
    """What became of a number that no float can hold."""
    if not isinstance(node.value, float):
        return ""
    if not math.isfinite(node.value):
        return ", which is not finite"
    written = node.text.lower().partition("e")[0].strip("+-0._")
    return ", which is so small that it becomes 0" if node.value == 0 and written else ""


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _advice(node: Node, annotation: Any, metadata: list[Any]) -> str:
    """What to write instead, where that can be guessed."""
    kinds = [kind for kind, _ in alternatives(annotation)]
    inner = [item for _, found in alternatives(annotation) for item in found]
    if any(isinstance(item, Words) for item in (*metadata, *inner)):
        return ""
    if isinstance(node.value, str):
        return _advice_for_text(node.value, kinds, choices(annotation))
    if isinstance(node.value, float) and int in kinds and node.value.is_integer() and abs(node.value) < 2**53:
        return f"write {int(node.value)}"
    if isinstance(node.value, int | float) and kinds == [str]:
        return "put it in quotes"
    return ""


def _advice_for_text(value: str, kinds: list[Any], allowed: list[str]) -> str:
    # among words as short as cpu and gpu, nearness means nothing
    near = closest(value, allowed, cutoff=0.5 if len(value) > 3 else 1.0) if allowed else None
    if near:
        return f"did you mean {near}?"
    if bool in kinds and value.lower() in ("yes", "on", "no", "off", "y", "n"):
        return f"write {'true' if value.lower() in ('yes', 'on', 'y') else 'false'}"
    number = int in kinds or float in kinds
    try:
        typed = resolve(value)
    except ValueError:
        return ""
    if (number and isinstance(typed, int | float)) or (bool in kinds and isinstance(typed, bool)):
        return "remove the quotes"
    digits = value.replace(",", "")
    if not (number and digits.isascii() and digits.isdigit()):
        return ""
    # with leading zeros YAML 1.2 takes it for text: in other places it would be an octal number
    return "write the digits without commas" if "," in value else f"write {_short(digits.lstrip('0') or '0')}"


def _missing(tree: Node, path: Path, names: list[str]) -> Iterator[Problem]:
    section = dotted(path)
    if section:
        # of a list item there is no key to point at
        item = path and isinstance(path[-1], int)
        mark = locate(tree, path, "").node.mark if item else tree_key_mark(tree, _schema_path(path))
        whole = sum(key.section == section and key.field.is_required() for key in keys().values()) == len(names)
        remedy = (_preset_hint(section) if whole else "") or f"add {'it' if len(names) == 1 else 'them'} to {section}"
        yield mark.problem(f"{section} lacks {', '.join(names)}", remedy)
        return
    for name in names:
        description = (keys()[name].field.description or "").rstrip(".")
        mark = tree_key_mark(tree, name)
        remedy = _preset_hint(name) or f"add {name}: {_example(name)}"
        if mark == tree.mark:
            yield Problem(mark.source.place, f"{name} is missing: {description}", remedy)
        else:  # written, but null
            yield mark.problem(f"{name} is empty: {description}", remedy)


def _example(name: str) -> str:
    needed = [key.name for key in keys().values() if key.section == name and key.field.is_required()]
    return f"{{{', '.join(f'{item}: ...' for item in needed)}}}" if needed else "..."


def _preset_hint(section: str | int) -> str:
    """For the sections that presets fill: which presets there are."""
    axis = next((axis for axis, filled in SECTION_OF_AXIS.items() if filled == section), None)
    names = [name.partition("/")[2] for name in available(axis)] if axis else []
    return f"fill it with extends: [{axis}/NAME]; there are {', '.join(names)}" if names else ""
