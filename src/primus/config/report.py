"""Errors as a person reads them: the place, the source line with a caret, the cause, the remedy."""

from __future__ import annotations

import textwrap
from primus.errors import PrimusError, Problem


def render(error: PrimusError, width: int = 80, color: bool = False) -> str:
    """`error` as lines of at most `width` columns."""
    blocks = [str(problem) for problem in error.problems]
    return "\n".join(blocks) + "\n"
