"""Whole numbers near one that does not fit: what a remedy offers."""

from __future__ import annotations

from math import gcd

SEARCH = 4096
"""Steps a search for a near alternative may take: a hint must not cost time when the numbers are absurd."""


def nearest_divisors(value: int, total: int) -> list[int]:
    """The divisors of `total` next to `value` on either side, as far as a short search finds them; never empty."""
    start = min(value, total)
    below = range(start, max(0, start - SEARCH), -1)
    above = range(value + 1, min(total, value + SEARCH) + 1)
    found = [next((d for d in side if total % d == 0), None) for side in (below, above)]
    return [d for d in found if d is not None] or [gcd(value, total)]


def nearest_multiples(value: int, unit: int) -> list[int]:
    """The multiples of `unit` next to `value` on either side, without 0."""
    low = value // unit * unit
    return [m for m in (low, low + unit) if m > 0]
