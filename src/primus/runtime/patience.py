"""How long a run may be silent before it counts as hanging."""

from __future__ import annotations

import statistics
from collections import deque
from typing import Any

from primus.config.units import SHORTEST_MULTIPLE, multiple, seconds
from primus.plan.plan import Plan

START_SECONDS = 600.0
"""Before the first step, imports, compilation and loading may take this long, whatever ``hang_timeout`` is."""
PAUSE_SECONDS = 600.0
"""Validation and saving may, where ``hang_timeout`` is a multiple of the step: they are no steps."""
RECENT = 50
FEW = 5


class Patience:
    """Fed with the run's records, it knows how long the next may take to come."""

    def __init__(self, plan: Plan) -> None:
        experiment = plan.experiment
        self.text = experiment.resilience.hang_timeout
        self.factor = multiple(self.text)
        self.fixed = 0.0 if self.factor else seconds(self.text)
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
            return max(self.fixed, START_SECONDS)
        if not self.factor:
            return self.fixed
        if len(self._recent) < FEW:
            return START_SECONDS
        usual = max(self.factor * statistics.median(self._recent), SHORTEST_MULTIPLE)
        pause = self.stopping or self._step >= self.steps or any(self._step % every == 0 for every in self.intervals)
        return max(usual, PAUSE_SECONDS) if pause else usual

    def __str__(self) -> str:
        usual = f", at {statistics.median(self._recent):.3g} s a step" if self.factor and self._recent else ""
        return f"resilience.hang_timeout is {self.text}{usual}"
