"""Laying one tree over another."""

from __future__ import annotations

from primus.config.document import Entry, Node


def merge(lower: Node, upper: Node) -> Node:
    """`upper` over `lower`: maps are merged key by key, anything else is replaced. Each value keeps its own mark.

    Associative. A ``null`` replaces like any other value; what it stands for (the default) is decided after merging.
    """
    if not (isinstance(lower.value, dict) and isinstance(upper.value, dict)):
        return upper._replace(replaced=_under(upper, lower))
    entries = dict(lower.value)
    for key, entry in upper.value.items():
        below = entries.get(key)
        # the key of a section shared by both is the upper one's: an error points at what was written last
        entries[key] = Entry(entry.key, merge(below.node, entry.node)) if below else entry
    return upper._replace(value=entries)


def _under(upper: Node, lower: Node) -> Node:
    """What `upper` already stood over, with `lower` at the very bottom."""
    return lower if upper.replaced is None else upper.replaced._replace(replaced=_under(upper.replaced, lower))
