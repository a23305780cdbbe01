"""An engine's own configuration classes as a snapshot: what the ``generate_schema`` of the built-in backends share.

Nothing of it runs while training or planning: the snapshots it makes are files of the backends.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import inspect
import json
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

Fields = dict[str, dataclasses.Field[Any]]


@dataclasses.dataclass(frozen=True)
class Changes:
    """Where an experiment sees a key otherwise than the engine has it. portable: the portable key that sets it; types
    and choices: fewer than the engine takes; defaults: what the backend itself starts from."""

    portable: Mapping[str, str]
    types: Mapping[str, str] = dataclasses.field(default_factory=dict)
    choices: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def native_keys(
    sections: Mapping[str, list[type]], offered: Callable[[str], bool], changes: Changes
) -> dict[str, dict[str, Any]]:
    """Dotted key -> NativeKey as JSON, of every field of the dataclasses in `sections` whose key is `offered`."""
    keys = {}
    for section, classes in sections.items():
        hints: dict[str, Any] = {}
        words: dict[str, str] = {}
        for cls in classes:
            hints |= get_type_hints(cls, include_extras=True)
            words |= descriptions(cls)
        for name, field in fields_of(classes).items():
            key = f"{section}.{name}"
            if offered(key):
                keys[key] = _entry(key, hints[name], field, words.get(name, ""), changes)
    return keys


def fields_of(classes: list[type]) -> Fields:
    """By name, without private ones; where two classes differ, as the last has them."""
    found: Fields = {}
    for cls in classes:
        found |= {field.name: field for field in dataclasses.fields(cls) if not field.name.startswith("_")}
    return found


def text(
    engine: Mapping[str, str], source: str, keys: Mapping[str, Any], omitted: Mapping[str, Any] | None = None
) -> str:
    """The snapshot as a file. source: the origin of its words. omitted: reason -> key -> default of what is not
    offered."""
    whole = {"engine": engine, "source": source, "keys": keys} | ({"omitted": omitted} if omitted else {})
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _entry(key: str, hint: Any, field: dataclasses.Field[Any], description: str, changes: Changes) -> dict[str, Any]:
    """One NativeKey as JSON, without what is empty."""
    default = field.default if field.default is not dataclasses.MISSING else None
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    allowed = [choice for part in parts(hint) if get_origin(part) is Literal for choice in get_args(part)]
    more = {
        "choices": list(changes.choices.get(key, allowed)),
        "description": description,
        "portable": changes.portable.get(key),
    }
    result = {"type": changes.types.get(key) or type_name(hint), "default": plain(changes.defaults.get(key, default))}
    return result | {name: value for name, value in more.items() if value}


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: types of torch and functions by their names."""
    if isinstance(value, enum.Enum):
        return value.name
    if value is None or isinstance(value, bool | int | float | str | list | tuple | dict):
        return value
    return getattr(value, "__name__", str(value).removeprefix("torch."))


def parts(hint: Any) -> list[Any]:
    """Members of a union, without annotations."""
    if get_origin(hint) is Annotated:
        return parts(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        return [part for member in get_args(hint) for part in parts(member)]
    return [hint]


def type_name(hint: Any) -> str:
    """``int | null``: as the checks of native keys read it."""
    found = []
    for part in parts(hint):
        if get_origin(part) is Literal:
            found += [type(choice).__name__ for choice in get_args(part)]
        elif part is type(None):
            found.append("null")
        elif get_origin(part) in (list, dict, tuple):
            found.append({"tuple": "list"}.get(get_origin(part).__name__, get_origin(part).__name__))
        else:
            found.append(getattr(part, "__name__", str(part)))
    return " | ".join(dict.fromkeys(found))


def descriptions(cls: type) -> dict[str, str]:
    """Field -> the first sentence of the string literal below it, over the class and those of its bases that come from
    the same package."""
    package = cls.__module__.partition(".")[0]
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base) and base.__module__.partition(".")[0] == package:
            found |= dict(_described(base))
    return found


def _described(cls: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            paragraph = textwrap.dedent(below.value.value).strip().split("\n\n")[0]
            yield field.target.id, " ".join(paragraph.split()).partition(". ")[0].rstrip(".") + "."
