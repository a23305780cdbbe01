"""Sections named after a backend: the engine's own keys, checked against its schema."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from primus.config.document import Entry, Node
from primus.config.keys import keys
from primus.config.suggest import closest
from primus.errors import PrimusError, Problem

if TYPE_CHECKING:
    from primus.backends.base import NativeKey, NativeSchema


def split(tree: Node) -> tuple[Node, dict[str, Entry]]:
    """`tree` without its native sections, and those sections by backend name."""
    assert isinstance(tree.value, dict)
    unknown = [key for key in tree.value if key not in keys() and key != "native"]
    if not unknown:
        return tree, {}
    from primus.backends import registry

    backends = set(registry.BUILT_IN)
    if not backends.issuperset(unknown):  # looking at every installed package takes tens of milliseconds
        backends = set(registry.names())
    sections = {key: tree.value[key] for key in unknown if key in backends}
    return tree._replace(value={key: entry for key, entry in tree.value.items() if key not in sections}), sections


def check(sections: dict[str, Entry]) -> tuple[dict[str, Any], list[Problem]]:
    """The plain values of the native sections, and what is wrong with them."""
    values: dict[str, Any] = {}
    problems: list[Problem] = []
    if sections:
        from primus.backends import registry

    for name, entry in sections.items():
        node = entry.node
        if node.value is None:
            continue
        if not isinstance(node.value, dict):
            problems.append(node.mark.problem(f"{name} must be a map of the engine's own keys"))
            continue
        if not node.value:
            continue
        values[name] = node.plain()
        try:
            schema = registry.get(name).native_schema()
        except PrimusError as error:
            problems.extend(error.problems)
            continue
        problems.extend(_check_map(name, "", node.value, schema))
    return values, problems


def _check_map(backend: str, prefix: str, entries: dict[str, Entry], schema: NativeSchema) -> Iterator[Problem]:
    known = schema.keys
    for name, entry in entries.items():
        dotted = f"{prefix}{name}"
        key = known.get(dotted)
        if key is not None:
            if key.portable:
                yield entry.key.problem(
                    f"{backend}.{dotted} is set by the portable key {key.portable}",
                    f"set {key.portable} and remove this",
                )
            elif _infinite(entry.node.value):
                yield entry.node.mark.problem(f"{backend}.{dotted} must be finite, but is {entry.node.text}")
            elif not _fits(entry.node.value, key.type):
                yield entry.node.mark.problem(
                    f"{backend}.{dotted} must be {_words(key.type)}, but is {_shown(entry.node)}",
                    key.description,
                )
            elif key.choices and not isinstance(entry.node.value, dict | list) and entry.node.value not in key.choices:
                near = closest(str(entry.node.value), [str(choice) for choice in key.choices], cutoff=0.5)
                allowed = f"one of {', '.join(map(str, key.choices))}"
                yield entry.node.mark.problem(
                    f"{backend}.{dotted} must be {allowed}, but is {_shown(entry.node)}",
                    f"did you mean {near}?" if near else "",
                )
        elif any(other.startswith(f"{dotted}.") for other in known):
            if isinstance(entry.node.value, dict):
                yield from _check_map(backend, f"{dotted}.", entry.node.value, schema)
            else:
                yield entry.node.mark.problem(f"{backend}.{dotted} is a section of keys, not {_shown(entry.node)}")
        elif dotted in schema.omitted:
            yield entry.key.problem(f"{backend}.{dotted} cannot be set: {schema.omitted[dotted].reason}", "remove it")
        else:
            engine = " ".join(f"{package} {version}" for package, version in schema.engine.items())
            yield entry.key.problem(
                f"unknown key '{name}' in {f'{backend}.{prefix}'.rstrip('.')} ({engine})", _remedy(dotted, known)
            )


def _remedy(dotted: str, known: dict[str, NativeKey]) -> str:
    prefix, _, name = dotted.rpartition(".")
    depth = dotted.count(".") + 1
    here: dict[str, bool] = {}  # whether one may set it
    for key, about in known.items():
        if not prefix or key.startswith(f"{prefix}."):
            there = ".".join(key.split(".")[:depth]).rpartition(".")[2]
            here[there] = here.get(there, False) or not about.portable
    near = closest(name, sorted(here))
    if near:
        return f"did you mean {near}?"
    elsewhere = [key for key in known if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"it belongs elsewhere: {' or '.join(elsewhere[:3])}"
    portable = [key.dotted for key in keys().values() if key.name == name]
    if portable:
        return f"it is a portable key: {portable[0]}, outside this section"
    return f"known here: {', '.join(sorted(key for key, settable in here.items() if settable)[:20])}"


def _shown(node: Node) -> str:
    if isinstance(node.value, dict):
        return "a map"
    return "a list" if isinstance(node.value, list) else "null" if node.value is None else f"'{node.text}'"


def _infinite(value: Any) -> bool:
    """JSON, in which the plan is carried, has no such numbers."""
    return isinstance(value, float) and not math.isfinite(value)


_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "number": (int, float),
    "bool": (bool,),
    "str": (str,),
    "string": (str,),
    "list": (list,),
    "dict": (dict,),
    "none": (type(None),),
    "null": (type(None),),
}


_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "list": "a list"}


def _words(declared: str) -> str:
    parts = [part.strip() for part in declared.split("|")]
    return ", or ".join(_WORDS.get(part, part) for part in parts)


def _fits(value: Any, declared: str) -> bool:
    """Whether `value` can be of the type that an engine's schema writes as e.g. ``int | None`` or ``list[str]``."""
    for part in declared.replace("Optional[", "None | ").split("|"):
        name = part.strip().partition("[")[0].rstrip("]").lower()
        types = _TYPES.get(name)
        if types is None:
            return True
        if isinstance(value, types) and (bool in types or not isinstance(value, bool)):
            return True
    return False
