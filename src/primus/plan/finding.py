"""What a check found wrong, before it is known where in which file that was written."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import NamedTuple

from primus.errors import Problem


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
