"""How long a run may be silent before it counts as hanging, and the clock for it."""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import Any

from primus.config.units import SHORTEST_MULTIPLE, multiple, seconds, start_seconds
from primus.events.units import duration
from primus.plan.plan import Plan

PAUSE_SECONDS = 600.0
"""Validation and saving may, where ``hang_timeout`` is a multiple of the step: they are no steps."""
RECENT = 50
FEW = 5
AWAY_SECONDS = 5.0
"""A process that looks ten times a second and has not for so long was suspended, by its batch system most likely."""


class Clock:
    """Seconds in which this process ran: while a job is suspended nobody hangs and no time runs out."""

    def __init__(self) -> None:
        self.now = self._looked = time.monotonic()

    def look(self) -> float:
        """Call often. Returns the time, which stays ``now`` until the next call."""
        looked = time.monotonic()
        passed, self._looked = looked - self._looked, looked
        if passed < AWAY_SECONDS:
            self.now += passed
        return self.now


class Patience:
    """Fed with the run's records, it knows how long the next may take to come."""

    def __init__(self, plan: Plan) -> None:
        experiment = plan.experiment
        self.text = experiment.resilience.hang_timeout
        self.factor = multiple(self.text)
        self.fixed = 0.0 if self.factor else seconds(self.text)
        self.start = start_seconds(experiment.resilience.start_timeout, self.text)
        self.start_text = experiment.resilience.start_timeout or duration(self.start)
        self.steps = experiment.train.steps
        self.intervals = [
            interval for interval in (experiment.checkpoint.interval, experiment.eval.interval) if interval
        ]
        self.stopping = False
        self._step = 0
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._stepped = False

    def started(self) -> None:
        """The ranks start: the first step is yet to come."""
        self._stepped = False
        self._recent.clear()

    def step(self, record: dict[str, Any]) -> None:
        if self._stepped:  # the first also compiled
            self._recent.append(record["seconds"])
        self._step, self._stepped = record["step"], True

    @property
    def limit(self) -> float:
        """Seconds."""
        if not self._stepped:
            return self.start
        if not self.factor:
            return self.fixed
        if len(self._recent) < FEW:
            return PAUSE_SECONDS
        usual = max(self.factor * statistics.median(self._recent), SHORTEST_MULTIPLE)
        pause = self.stopping or self._step >= self.steps or any(self._step % every == 0 for every in self.intervals)
        return max(usual, PAUSE_SECONDS) if pause else usual

    @property
    def key(self) -> str:
        """What sets the limit now."""
        return "resilience.hang_timeout" if self._stepped else "resilience.start_timeout"

    def __str__(self) -> str:
        if not self._stepped:
            return f"{self.key} is {self.start_text}"
        usual = f", at {statistics.median(self._recent):.3g} s a step" if self.factor and self._recent else ""
        return f"{self.key} is {self.text}{usual}"
