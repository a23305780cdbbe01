"""Manifests as YAML that every parser reads alike.

What is no text to one parser is a number or a boolean to another: Kubernetes' own takes ``1e3``, ``0o17`` and ``y``
without quotes for 1000, 15 and true, PyYAML for text. So a text is quoted unless it cannot be taken for anything else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

PLAIN = re.compile(r"[A-Za-z/]([A-Za-z0-9_./:=@-]*[A-Za-z0-9_/])?")
WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}
LINES = re.compile(r"[!-~]([ -~]*[!-~])?(\n([ -~]*[!-~])?)*")
"""Printable ASCII in lines without space at their ends: may stand as a block."""


def manifest(objects: Iterable[Mapping[str, Any]]) -> str:
    """`objects` as the documents of one YAML stream, keys in their order."""
    return yaml.dump_all(
        objects, Dumper=_Dumper, explicit_start=True, sort_keys=False, allow_unicode=False, width=float("inf")
    )


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)  # lists under a key are indented, as Kubernetes' own pages have them


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"'
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        style = ""
    elif "\n" in text and LINES.fullmatch(text):
        style = "|"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style or None)


_Dumper.add_representer(str, _text)
