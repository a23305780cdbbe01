"""Values written as YAML that this package, and YAML 1.1 parsers, read back as the same values."""

from __future__ import annotations

import re
from typing import Any

from primus.config.scalars import resolve

_SAFE = re.compile(r"[A-Za-z0-9_./~%+@-][A-Za-z0-9_./~%+@:,=*() \-]*\Z")
_NUMBER_ELSEWHERE = re.compile(r"[-+.]?[0-9][0-9a-fA-FxoT_.:+ -]*\Z")
"""What other parsers may take for a number, a time or a date."""
_YAML_1_1_WORDS = frozenset({"yes", "no", "on", "off", "y", "n"})


def flow(value: Any, inside: bool = False) -> str:
    """`value` on one line. `inside`: within a list or map, where commas and brackets must be quoted."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{text(str(key), True)}: {flow(item, True)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(flow(item, True) for item in value) + "]"
    return text(value, inside) if isinstance(value, str) else scalar(value)


def scalar(value: Any) -> str:
    """A number, boolean or null. Floats keep a point, without which YAML 1.1 takes ``1e-05`` for text."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float):
        mantissa, exponent, power = repr(value).partition("e")
        return f"{mantissa}{'' if '.' in mantissa else '.0'}{exponent}{power}" if exponent else mantissa
    return str(value)


def text(value: str, inside: bool = False) -> str:
    """Text, quoted only where it would otherwise be read as something else."""
    value = value.replace("${", "$${")
    plain = (
        _SAFE.match(value)
        and not value.startswith(("- ", "%", "@", "~"))
        and ": " not in value
        and not value.endswith((":", " "))
        and value.lower() not in _YAML_1_1_WORDS
        and _is_text(value)
    )
    if plain and not (inside and re.search(r"[,{}\[\]:]", value)) and value not in ("-", "<<", "="):
        return value
    return f'"{"".join(map(_quoted, value))}"'


def _quoted(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return {"\n": "\\n", "\t": "\\t"}.get(char) or f"\\U{ord(char):08x}"


def _is_text(value: str) -> bool:
    try:
        return isinstance(resolve(value), str) and not _NUMBER_ELSEWHERE.match(value)
    except ValueError:
        return False
