"""Quantities with units."""

from __future__ import annotations

import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+\Z")
LONGEST = 366 * 86400.0


def seconds(text: str) -> float:
    """The duration `text` in seconds: ``90s``, ``10m``, ``1h30m``, ``1.5d``. Raises ValueError for anything else."""
    if not _DURATION.match(text):
        raise ValueError("must be a duration with its unit, such as 90s, 10m, 1h30m or 2d")
    total = sum(float(amount) * _SECONDS[unit] for amount, unit in _PART.findall(text))
    if not 0 < total <= LONGEST:
        raise ValueError("must be a duration longer than nothing and at most 366d")
    return total
