"""What an unquoted scalar means: the YAML 1.2 core schema, plus digit groups (``1_000_000``).

Unlike YAML 1.1, ``1e-5`` is a number, ``yes``/``on`` are text, ``010`` and ``12:30`` are text, and dates stay text.
"""

from __future__ import annotations

import re

Scalar = str | int | float | bool | None

LARGEST_INTEGER = 2**63 - 1
"""Integers beyond 64 bits fit no engine and no file format."""

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_DIGITS = r"[0-9]+(?:_[0-9]+)*"
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)\Z")
_BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(rf"[-+]?(?:\.{_DIGITS}|{_DIGITS}\.(?:{_DIGITS})?|{_DIGITS}(?=[eE]))(?:[eE][-+]?[0-9]+)?\Z")
_INF = re.compile(r"[-+]?\.(?:inf|Inf|INF)\Z")
_NAN = frozenset({".nan", ".NaN", ".NAN"})


def is_text(text: str) -> bool:
    """Whether `text` can be written as UTF-8; from the command line and the environment come bytes that cannot."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def resolve(text: str) -> Scalar:
    """The value of the plain scalar `text`. Raises ValueError for an integer that does not fit into 64 bits."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.match(text) or _BASED.match(text):
        # the length is looked at first: Python refuses to convert thousands of digits
        value = int(text.replace("_", ""), 0 if text[:2] in ("0o", "0x") else 10) if len(text) < 40 else None
        if value is None or abs(value) > LARGEST_INTEGER:
            raise ValueError("the number does not fit into 64 bits")
        return value
    if _FLOAT.match(text):
        return float(text.replace("_", ""))
    if _INF.match(text):
        return float("-inf" if text.startswith("-") else "inf")
    return float("nan") if text in _NAN else text
