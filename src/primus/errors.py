"""Every exception Primus raises on purpose.

PrimusError                  base; ``exit_code`` 1
├── UsageError               a wrong command line; exit code 2
├── ConfigError              one or more problems in an experiment file, preset or override; exit code 2
├── PlanError                the experiment is well formed but cannot run as asked; exit code 2
├── EnvironmentFault         an environment is missing, incomplete or of another version
├── DataError                a dataset or tokenizer is missing, damaged or does not fit
├── CheckpointError          a checkpoint is missing, damaged or of another model
├── RunDirectoryError        the run directory is locked, unwritable or holds another experiment
├── LaunchError              processes could not be started, or one of them failed
└── TrainingError            training stopped on purpose
    └── AnomalyError         a step that must not count: its loss or gradient norm is NaN, infinite or a spike

An error names the place, the cause and the remedy. It carries data; ``primus.cli.main`` alone prints and exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    where: ``file:line:column``, a key, a path or a rank; empty when there is no place to point at.
    message: the cause, in one sentence.
    remedy: what to do about it; may be empty when the message says it all.
    excerpt: the offending source line, when there is one, with ``column`` (1-based) of its first character.
    """

    where: str
    message: str
    remedy: str = ""
    excerpt: str = ""
    column: int = 0

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        remedy = f" ({self.remedy})" if self.remedy else ""
        return f"{place}{self.message}{remedy}"


class PrimusError(Exception):
    """Base of all errors Primus raises on purpose. ``problems`` holds at least one Problem."""

    exit_code = 1

    def __init__(
        self, message: str = "", *, where: str = "", remedy: str = "", problems: Sequence[Problem] = ()
    ) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems) or (Problem(where, message, remedy),)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class UsageError(PrimusError):
    exit_code = 2


class ConfigError(PrimusError):
    exit_code = 2


class PlanError(PrimusError):
    exit_code = 2


class EnvironmentFault(PrimusError):
    pass


class DataError(PrimusError):
    pass


class CheckpointError(PrimusError):
    pass


class RunDirectoryError(PrimusError):
    pass


class LaunchError(PrimusError):
    pass


class TrainingError(PrimusError):
    """Training stopped on purpose. ``retryable`` is False when a restart would meet the same end."""

    def __init__(self, message: str, *, where: str = "", remedy: str = "", retryable: bool = False) -> None:
        super().__init__(message, where=where, remedy=remedy)
        self.retryable = retryable


class AnomalyError(TrainingError):
    pass
