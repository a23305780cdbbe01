"""A resolved experiment as text: all of it, why one key has its value, and what differs from another."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from primus.config import emit
from primus.config.document import Node
from primus.config.keys import keys
from primus.config.load import Resolved
from primus.config.suggest import closest
from primus.errors import UsageError

WIDEST_VALUE = 60


def values(resolved: Resolved) -> dict[str, Any]:
    """Dotted key -> plain value, of every leaf; same keys as ``resolved.origins``."""
    dumped = resolved.experiment.model_dump(mode="json", by_alias=True, exclude={"native"})
    dumped |= resolved.experiment.native
    return {key: _get(dumped, key) for key in resolved.origins}


def _get(tree: Any, key: str) -> Any:
    """The value at the dotted `key`; keys of maps (environment variables, native keys) may hold dots themselves."""
    if key in tree:
        return tree[key]
    head = next(name for name in tree if key.startswith(f"{name}."))
    return _get(tree[head], key[len(head) + 1 :])


def as_yaml(resolved: Resolved, *, everything: bool = False) -> list[tuple[str, str]]:
    """Lines of a complete experiment file that resolves to the same values, each with the origin of its value (empty
    for a section's own line). Keys without a value are left out unless `everything` is asked for."""
    lines: list[tuple[str, str]] = []
    opened: tuple[str, ...] = ()
    for key, value in values(resolved).items():
        if (value is None or value == {}) and not everything and str(resolved.origins[key]) == "default":
            continue
        *sections, name = _parts(resolved, key)
        common = 0
        while common < min(len(opened), len(sections)) and opened[common] == sections[common]:
            common += 1
        for depth in range(common, len(sections)):
            lines.append((f"{'  ' * depth}{emit.text(sections[depth])}:", ""))
        opened = tuple(sections)
        lines.append((f"{'  ' * len(sections)}{emit.text(name)}: {emit.flow(value)}", str(resolved.origins[key])))
    return lines


def _parts(resolved: Resolved, key: str) -> list[str]:
    """`key` split into the names it is nested under in a file."""
    if key in keys():
        return key.split(".")
    if key.startswith("env."):
        return ["env", key[4:]]
    dumped: Any = {**resolved.experiment.native, "hardware": {"peak_tflops": resolved.experiment.hardware.peak_tflops}}
    parts: list[str] = []
    while key:
        head = key if key in dumped else next(name for name in dumped if key.startswith(f"{name}."))
        parts.append(head)
        dumped, key = dumped[head], key[len(head) + 1 :]
    return parts


def aligned(lines: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """`lines` with their comments in one column; a long value pushes only its own comment out."""
    widths = [len(text) for text, comment in lines if comment and len(text) <= WIDEST_VALUE]
    column = max(widths, default=0) + 2
    for text, comment in lines:
        yield (f"{text}  ".ljust(column) if comment else text), f"# {comment}" if comment else ""


def why(resolved: Resolved, key: str) -> list[tuple[str, Any, list[tuple[Any, str]]]]:
    """For `key`, or each key of the section `key`: its name, its value, and every layer that set it, winner first, as
    (value, origin). Raises UsageError when there is no such key."""
    table = values(resolved)
    chosen = [name for name in table if name == key or name.startswith(f"{key}.")]
    if not chosen:
        near = closest(key, table, cutoff=0.5) or next((name for name in table if name.endswith(f".{key}")), None)
        raise UsageError(
            f"there is no key '{key}'",
            remedy=f"did you mean {near}?" if near else "primus-cli config reference lists all",
        )
    return [(name, table[name], _layers(resolved, name)) for name in chosen]


def _layers(resolved: Resolved, key: str) -> list[tuple[Any, str]]:
    node: Node | None = resolved.node(key)
    layers = []
    while node is not None:
        origin = node.mark.origin
        place = f" ({node.mark.where})" if origin.kind == "preset" else ""
        layers.append((node.plain(), f"{origin}{place}"))
        node = node.replaced
    return layers or [(values(resolved)[key], "default")]


def difference(first: Resolved, second: Resolved) -> list[tuple[str, Any, Any]]:
    """(key, value in `first`, value in `second`) where they differ; ``...`` stands for a key that is not there."""
    left, right = values(first), values(second)
    every = list(dict.fromkeys([*left, *right]))
    return [
        (key, left.get(key, ...), right.get(key, ...)) for key in every if left.get(key, ...) != right.get(key, ...)
    ]
