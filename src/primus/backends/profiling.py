"""Traces of chosen steps in chosen processes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from primus.backends.base import Session
from primus.events.types import Notice
from primus.plan.plan import Plan


class Tracer(Protocol):
    """What an engine's framework records of a process and its devices."""

    def start(self) -> None: ...

    def stop(self, path: Path) -> None:
        """End the recording and write it as a compressed Chrome trace."""
        ...


class Profiling:
    """One trace a rank, `profile/rank-R-steps-A-B.json.gz` in the attempt's directory; open it in Perfetto or
    chrome://tracing."""

    def __init__(self, plan: Plan, session: Session, tracer: Tracer) -> None:
        settings = plan.experiment.profile
        chosen = settings is not None and session.number in settings.ranks
        self._steps = settings.steps if settings is not None and chosen else None
        self._session, self._tracer = session, tracer
        self._traces = False

    def before(self, step: int) -> None:
        if self._steps is not None and step == self._steps[0] and not self._traces:  # a step may be made again
            self._tracer.start()
            self._traces = True

    def after(self, step: int) -> None:
        if not self._traces or self._steps is None or step != self._steps[1]:
            return
        self._traces = False
        (first, last), rank = self._steps, self._session.number
        self._steps = None
        path = self._session.attempt_directory / "profile" / f"rank-{rank}-steps-{first}-{last}.json.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tracer.stop(path)
        self._session.emit(Notice(message=f"profile of steps {first} to {last} on rank {rank}: {path}", step=step))
