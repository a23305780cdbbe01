"""A merged tree -> an Experiment, or every problem at once, each at its place."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import ValidationError

from primus.config.document import Node
from primus.config.experiment import Experiment, Section
from primus.config.keys import alternatives, fields
from primus.config.source import Mark
from primus.errors import Problem


def plain(node: Node, annotation: Any) -> Any:
    """The value of `node` as pydantic is to see it. In sections a null means the default and is left out; where only
    text is expected, a number that came from ``${VAR}`` is its text, and so is any scalar of ``env``."""
    kinds = [kind for kind, _ in alternatives(annotation)]
    value = node.value
    if isinstance(value, dict):
        return _plain_map(value, kinds)
    if isinstance(value, list):
        item = next((get_args(kind)[0] for kind in kinds if get_origin(kind) in (list, tuple)), Any)
        return [plain(entry, item) for entry in value]
    if node.interpolated and value is not None and kinds == [str]:
        return node.text
    return value


def _plain_map(entries: dict[str, Any], kinds: list[Any]) -> dict[str, Any]:
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Section):
            known = fields(kind)
            return {
                name: plain(entry.node, known[name].annotation if name in known else Any)
                for name, entry in entries.items()
                if entry.node.value is not None or name not in known
            }
        if get_origin(kind) is dict:
            item = get_args(kind)[1]
            written = {name: entry.node for name, entry in entries.items() if entry.node.value is not None}
            if item is str:
                return {
                    name: node.plain() if isinstance(node.value, dict | list) else node.text
                    for name, node in written.items()
                }
            return {name: plain(node, item) for name, node in written.items()}
    return {name: entry.node.plain() for name, entry in entries.items()}


def validate(
    tree: Node, natives: dict[str, Any], unread: Collection[str] = ()
) -> tuple[Experiment | None, list[Problem]]:
    """The experiment of `tree` (without native sections, which are `natives`), or what is wrong with it. `unread`:
    sections of which a part could not be read, so that what they lack is no mistake of its own."""
    data = plain(tree, Experiment)
    problems: list[Problem] = []
    if "native" in data:
        remedy = "name the section after the backend, e.g. torchtitan"
        problems.append(tree_key_mark(tree, "native").problem("'native' is not a section", remedy))
    data["native"] = natives
    try:
        # JSON is the form in which pydantic's strict mode takes lists for tuples and 1 for 1.0, as YAML means them
        experiment = Experiment.model_validate_json(json.dumps(data))
    except ValidationError as error:
        from primus.config.complaints import describe

        found = [
            locate(tree, item["loc"], item["type"]) for item in error.errors(include_url=False, include_context=False)
        ]
        return None, problems + describe(tree, found, unread)
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


class Found(NamedTuple):
    """One of pydantic's complaints, tied to the tree. ``path`` holds only keys and indices that were written, plus the
    missing key at the end. ``node`` and ``key``: the deepest value that was written, and its key."""

    path: tuple[str | int, ...]
    type: str
    node: Node
    key: Mark | None


def locate(tree: Node, location: tuple[str | int, ...], kind: str) -> Found:
    """Follow pydantic's `location` through the tree, leaving out the tags it adds for members of a union."""
    node, key = tree, None
    path: list[str | int] = []
    for index, part in enumerate(location):
        value = node.value
        if isinstance(value, dict) and isinstance(part, str) and part in value:
            node, key = value[part].node, value[part].key
            path.append(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            node = value[part]
            path.append(part)
        elif kind == "missing" and index == len(location) - 1:
            if isinstance(part, int):  # a list that is too short is a value that does not fit
                kind = "too_short"
            else:
                path.append(part)
    return Found(tuple(path), kind, node, key)
