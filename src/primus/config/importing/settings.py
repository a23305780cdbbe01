"""One key of a foreign file with its value and its place."""

from __future__ import annotations

from pathlib import PurePath
from typing import Any, NamedTuple

from primus.config.document import Node
from primus.config.secrets import is_secret
from primus.config.source import Mark


class Setting(NamedTuple):
    """``name`` as the table of keys writes it: dots between sections, underscores in flags.

    problem: why its value cannot be known. written: the key as it stands in the file, if otherwise than ``name``.
    raw: a text value before its ``${VAR}`` were replaced, when it has any.
    """

    name: str
    key: Mark
    node: Node
    problem: str = ""
    written: str = ""
    raw: str = ""

    @property
    def label(self) -> str:
        return self.written or self.name

    @property
    def where(self) -> str:
        """``file:line``, without the file's directory."""
        return f"{PurePath(self.key.source.place).name}:{self.key.line}"

    @property
    def shown(self) -> str:
        """``key: value`` or ``--flag value`` on one line, not too long and without secrets."""
        from primus.config.emit import flow

        flag = self.label.startswith("--")
        value: Any = self.node.plain()
        if self.label.startswith("$"):
            return self.label
        if is_secret(self.name):
            text = "(not shown)"
        elif self.raw or (self.problem and self.node.text):
            text = self.raw or self.node.text
        elif flag:
            text = " ".join(item if isinstance(item, str) else flow(item) for item in _list(value) if item is not True)
        else:
            text = flow(value)
        text = text if len(text) <= 60 else f"{text[:57]}..."
        return f"{self.label}{' ' if flag else ': '}{text}".rstrip()


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
