"""Our own loader's opinion of an imported experiment."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from primus.config.importing.write import Line, as_text
from primus.config.load import load
from primus.errors import ConfigError, Problem

_BATCH = "there it follows from the number of devices: give --hardware NAME, or set it"


class Verdict(NamedTuple):
    """One refusal. target: the key or section of the line it points at; empty when it points at none."""

    target: str
    problem: Problem


def verdicts(lines: list[Line], environment: Mapping[str, str], *, hardware: bool) -> list[Verdict]:
    """What `config check` would say of the file. hardware: whether it names one; else any will do."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "experiment.yaml")
        path.write_text(as_text(lines), encoding="utf-8")
        try:
            load(path, [] if hardware else ["extends=hardware/cpu"], environment)
        except ConfigError as error:
            return [_verdict(problem, str(path), lines) for problem in error.problems]
    return []


def _verdict(problem: Problem, path: str, lines: list[Line]) -> Verdict:
    line = problem.where.removeprefix(f"{path}:").partition(":")[0] if problem.where.startswith(f"{path}:") else ""
    remedy = _BATCH if "lacks" in problem.message and "global_batch_size" in problem.message else problem.remedy
    plain = Problem("", problem.message, remedy)
    return Verdict(lines[int(line) - 1].target if line.isdigit() and int(line) <= len(lines) else "", plain)
