"""Quantities with units."""

from __future__ import annotations

import re

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MULTIPLE = re.compile(r"([0-9]+(?:\.[0-9]+)?)x\Z")
_PART = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+\Z")
SHORTEST_MULTIPLE = 30.0
"""Seconds that a multiple of the step means at least: short steps vary by more than long ones."""
LONGEST = 366 * 86400.0
LATER = 60.0
"""Seconds that collectives outlast the launcher's patience."""
SHORTEST_START = 600.0
"""Seconds that a start may take by default: imports, compilation and loading last longer than steps."""


def seconds(text: str) -> float:
    """The duration `text` in seconds: ``90s``, ``10m``, ``1h30m``, ``1.5d``. Raises ValueError for anything else."""
    if not _DURATION.match(text):
        raise ValueError("must be a duration with its unit, such as 90s, 10m, 1h30m or 2d")
    total = sum(float(amount) * _SECONDS[unit] for amount, unit in _PART.findall(text))
    if not 0 < total <= LONGEST:
        raise ValueError("must be a duration longer than nothing and at most 366d")
    return total


def multiple(text: str) -> float | None:
    """``20x`` -> 20.0; None when `text` is no multiple."""
    match = _MULTIPLE.match(text)
    return float(match[1]) if match else None


def least_seconds(hang_timeout: str) -> float:
    """How long a run may be silent at least, for a ``resilience.hang_timeout``."""
    return SHORTEST_MULTIPLE if multiple(hang_timeout) else seconds(hang_timeout)


def start_seconds(start_timeout: str | None, hang_timeout: str) -> float:
    """How long a run may be silent before its first step, for these two of ``resilience``."""
    if start_timeout is not None:
        return seconds(start_timeout)
    return SHORTEST_START if multiple(hang_timeout) else max(SHORTEST_START, seconds(hang_timeout))


def collective_seconds(hang_timeout: str) -> float:
    """How long a collective may take, for a ``resilience.hang_timeout``: longer than the launcher waits for a step, so
    that it still finds the ranks and asks them where they stand. What a multiple comes to, it alone knows."""
    return 86400.0 if multiple(hang_timeout) else seconds(hang_timeout) + LATER


def first_collective_seconds(start_timeout: str | None, hang_timeout: str) -> float:
    """The same before the first step is done."""
    return start_seconds(start_timeout, hang_timeout) + LATER
