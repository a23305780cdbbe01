"""Whether ranks that failed are started again: a budget within a window of time, and an end to crash loops."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from primus.events import units
from primus.events.jsonl import decode, file_of

LOOP = 3
"""So many starts in a row that end at the same step are a crash loop: what fails there comes back."""
TAIL_BYTES = 1 << 16


class Restarts:
    """One node's count of restarts. limit: how many there may be within `window` seconds; clock: monotonic seconds."""

    def __init__(self, limit: int, window: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit, self.window, self.clock = limit, window, clock
        self.number = 0
        self._times: deque[float] = deque()
        self._ends: deque[int | None] = deque(maxlen=LOOP)

    @property
    def left(self) -> int:
        while self._times and self.clock() - self._times[0] > self.window:
            self._times.popleft()
        return self.limit - len(self._times)

    def refuse(self, step: int | None) -> str | None:
        """Why a start that ended after `step` (None: before it trained) is not followed by another; None when it is,
        which counts. Empty when there were to be no restarts at all."""
        self._ends.append(step)
        if self.limit == 0:
            return ""
        if len(self._ends) == LOOP and len(set(self._ends)) == 1:
            where = "before training began" if step is None else f"after step {step:,}"
            return f"no further restart: {LOOP} starts in a row ended {where}, so the next one would too"
        if self.left <= 0:
            times = units.plural(self.limit, "restart")
            return f"no further restart: {times} within {units.duration(self.window)} (resilience.max_restarts)"
        self._times.append(self.clock())
        self.number += 1
        return None


class LastStep:
    """The last step that the ranks have finished since ``mark``, by what rank 0 reported."""

    def __init__(self, attempt: Path) -> None:
        self.path = file_of(attempt, "rank0")
        self._from = 0

    def mark(self) -> None:
        """The ranks start now."""
        self._from = self._size()

    def read(self) -> int | None:
        """None: they have not begun to train."""
        size = self._size()
        begin = max(self._from, size - TAIL_BYTES)
        try:
            with self.path.open("rb") as file:
                file.seek(begin)
                lines = file.read(size - begin).splitlines()
        except OSError:
            return None
        for record in map(decode, reversed(lines)):
            if record and record["event"] == "step_done":
                return int(record["step"])
            if record and record["event"] == "run_started":
                return int(record.get("resumed_from") or 0)
        return None

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0
