"""Laying one tree over another."""

from __future__ import annotations

from primus.config.document import Entry, Node
from primus.config.source import Mark


def merge(lower: Node, upper: Node) -> Node:
    """`upper` over `lower`: maps are merged key by key, anything else is replaced. Each value keeps its own mark.

    Associative. A ``null`` replaces like any other value; what it stands for (the default) is decided after merging.
    """
    if not (isinstance(lower.value, dict) and isinstance(upper.value, dict)) or upper.replaced is not None:
        return upper if upper is lower else _over(upper, lower)  # a map that replaced a value hides what was below it
    entries = dict(lower.value)
    for key, entry in upper.value.items():
        below = entries.get(key)
        # the key of a section shared by both is the upper one's: an error points at what was written last
        entries[key] = Entry(entry.key, merge(below.node, entry.node)) if below else entry
    return upper._replace(value=entries, replaced=lower.replaced)


def _over(upper: Node, lower: Node) -> Node:
    """`upper` with `lower` at the bottom of what it stands over. A layer met twice counts once, at its higher place:
    presets that extend the same preset would otherwise double the history at each step."""
    layers: dict[Mark, Node] = {}
    for top in (upper, lower):
        node: Node | None = top
        while node is not None:
            layers.setdefault(node.mark, node)
            node = node.replaced
    below: Node | None = None
    for node in reversed(layers.values()):
        if below is not None and isinstance(node.value, dict) and isinstance(below.value, dict):
            below = merge(below, node._replace(replaced=None))  # as if these two had been merged first
        else:
            below = node._replace(replaced=below)
    assert below is not None
    return below
