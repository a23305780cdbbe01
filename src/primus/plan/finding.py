"""What a check found wrong, before it is known where in which file that was written."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod
from typing import NamedTuple

from primus.errors import Problem

SEARCH = 4096
"""Steps a search for a near alternative may take: a hint must not cost time when the numbers are absurd."""


class Finding(NamedTuple):
    """key: a dotted key of the experiment, or an option of the command line (``--nproc``).
    general: engines have stricter rules of their own here; what one says of the same key replaces this."""

    key: str
    message: str
    remedy: str = ""
    general: bool = False

    def problem(self, at: Callable[[str, str, str], Problem]) -> Problem:
        """`at` makes the Problem that points at where a key was set."""
        make = Problem if self.key.startswith("-") else at
        return make(self.key, self.message, self.remedy)


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


def either(values: list[int]) -> str:
    return " or ".join(str(value) for value in values)


def count(number: int, noun: str) -> str:
    plural = f"{noun}es" if noun.endswith(("s", "ch")) else f"{noun}s"
    return f"{number:,} {noun if number == 1 else plural}"


def product(sizes: dict[str, int]) -> str:
    """``tensor 2 x pipeline 3 = 6``: without the axes of size 1, unless all are."""
    shown = {axis: size for axis, size in sizes.items() if size > 1} or sizes
    text = " x ".join(f"{axis} {size}" for axis, size in shown.items())
    return text if len(shown) == 1 else f"{text} = {prod(shown.values())}"
