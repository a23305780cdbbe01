"""The schema seen as a table of dotted keys, and types in plain words."""

from __future__ import annotations

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from primus.config.experiment import Experiment, Section, Words


class Key(NamedTuple):
    """One key of the experiment file. ``name`` is its last part as written in the file, ``section`` the dotted
    section it stands in (empty at the top), ``field`` pydantic's view of it."""

    dotted: str
    name: str
    section: str
    field: FieldInfo

    @property
    def subsection(self) -> type[Section] | None:
        """The section's class, when this key opens one."""
        return section_in(self.field.annotation)

    @property
    def expected(self) -> str:
        return words(self.field.annotation, self.field.metadata)


@cache
def keys() -> dict[str, Key]:
    """Every key that may stand in an experiment file, sections included, in the schema's order."""
    return {key.dotted: key for key in _walk(Experiment, "") if key.dotted != "native"}


def _walk(section: type[Section], prefix: str) -> Iterator[Key]:
    for name, field in fields(section).items():
        key = Key(f"{prefix}{name}", name, prefix[:-1], field)
        yield key
        if key.subsection:
            yield from _walk(key.subsection, f"{key.dotted}.")


def fields(section: type[Section]) -> dict[str, FieldInfo]:
    """The section's fields by the names the file uses (``async``, not ``async_``)."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def alternatives(annotation: Any) -> list[tuple[Any, list[Any]]]:
    """The members of a union, each with its constraints; None left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        return [(kind, [*inner, *_flat(metadata)]) for kind, inner in alternatives(base)]
    if origin in (Union, types.UnionType):
        return [pair for member in get_args(annotation) for pair in alternatives(member)]
    return [] if annotation is type(None) else [(annotation, [])]


def _flat(metadata: list[Any]) -> list[Any]:
    return [item for entry in metadata for item in (entry.metadata if isinstance(entry, FieldInfo) else [entry])]


def section_in(annotation: Any) -> type[Section] | None:
    for kind, _ in alternatives(annotation):
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
    return None


def choices(annotation: Any) -> list[str]:
    """The words a key accepts, when it accepts a fixed set."""
    return [str(word) for kind, _ in alternatives(annotation) if get_origin(kind) is Literal for word in get_args(kind)]


def words(annotation: Any, metadata: list[Any] | None = None) -> str:
    """What a value must be: ``a whole number, 1 or more``, ``one of cosine, linear``."""
    return ", or ".join(_one(kind, [*inner, *(metadata or [])]) for kind, inner in alternatives(annotation))


def _one(kind: Any, metadata: list[Any]) -> str:
    said = next((item.text for item in metadata if isinstance(item, Words)), None)
    if said:
        return said
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else f"'{arguments[0]}'"
    if origin in (list, tuple):
        some = any(hasattr(item, "min_length") for item in metadata)
        count = len(arguments) if origin is tuple else "at least one" if some else "any number"
        return f"a list of {count}, each {words(arguments[0])}"
    if isinstance(kind, type) and issubclass(kind, Section):
        known = fields(kind)
        needed = [name for name, field in known.items() if field.is_required()]
        shown = [*needed, *(name for name in known if name not in needed)][:4]
        return f"a map of {', '.join(shown)}{', ...' if len(known) > len(shown) else ''}"
    simple = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a map"}
    return simple[origin or kind] + _range(kind, metadata)


def _range(kind: type, metadata: list[Any]) -> str:
    names = ("gt", "ge", "lt", "le")
    bounds = {name: getattr(item, name) for item in metadata for name in names if hasattr(item, name)}
    if kind is int and "gt" in bounds:
        bounds["ge"] = bounds.pop("gt") + 1
    low = f"of at least {bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}" if "gt" in bounds else ""
    high = f"below {bounds['lt']:g}" if "lt" in bounds else f"of at most {bounds['le']:g}" if "le" in bounds else ""
    return f" {' and '.join(part for part in (low, high) if part)}" if low or high else ""
