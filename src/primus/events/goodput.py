"""Where the time of a run went. Goodput is the share of it that made steps which still count.

The term is that of Google's ML Goodput: time of training progress that was preserved, over all time. The parts, in
seconds, sum up to the whole; docs/events.md has their definitions for people.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from operator import le, sub
from statistics import median
from typing import Any

from primus.events import units
from primus.events.steps import Steps

SHOWN = 0.005
"""Seconds of a part that people are shown: less is the rounding of times."""
_SAMPLE = 1001
_LONGEST = 1e11
"""Seconds; longer is no duration, and later no time, but a damaged line."""


@dataclass
class Goodput:
    """Seconds of a run, an attempt or a start, by what they were spent on; none is negative.

    useful: in steps that count. validation: of the model, apart because it moves no weight. checkpoint: training stood
    still while one was saved. start_up: from the start of the processes to the first step, with what that took longer
    than the others (compiling), less validation. lost: in steps that were trained again, and from the last step to a
    failure. waiting: nothing ran. other: the rest.
    """

    useful: float = 0.0
    validation: float = 0.0
    checkpoint: float = 0.0
    start_up: float = 0.0
    lost: float = 0.0
    waiting: float = 0.0
    other: float = 0.0

    @property
    def total(self) -> float:
        seconds: float = sum(getattr(self, name) for name in PARTS)
        return seconds

    @property
    def fraction(self) -> float | None:
        """Useful time over all time; None when no time has passed."""
        total = self.total
        return self.useful / total if total > 0 else None

    def add(self, other: Goodput) -> None:
        for name in PARTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


PARTS = tuple(part.name for part in fields(Goodput))


def as_dict(parts: Goodput | None) -> dict[str, Any] | None:
    """For JSON: the seconds of each part, their ``total``, and the useful ``fraction``."""
    return None if parts is None else asdict(parts) | {"total": parts.total, "fraction": parts.fraction}


def lines(parts: Goodput | None) -> list[tuple[str, str, str, str]]:
    """For people: each part that took time by its name, its words, how long, and its share."""
    if parts is None or not (whole := parts.total):
        return []
    found = [(name, getattr(parts, name)) for name in PARTS]
    return [
        (name, _LABELS.get(name, name), units.duration(value), units.percent(value / whole))
        for name, value in found
        if value >= SHOWN
    ]


_LABELS = {"useful": "useful steps", "start_up": "start-up", "lost": "lost steps"}


@dataclass(frozen=True)
class Stretch:
    """The steps that one start trained, summed up. began: when the first one began; ended: when the last one had ended;
    seconds: in steps; elapsed: from `began` to `ended`, by a clock that never goes back; first: seconds of the first
    step; usual: of a later one, None when there is none."""

    first_step: int
    last_step: int
    count: int
    began: float
    ended: float
    seconds: float
    elapsed: float
    first: float
    usual: float | None

    @classmethod
    def of(cls, steps: Steps) -> Stretch | None:
        """None without steps."""
        if not steps:
            return None
        seconds, times = _durations(steps.seconds), _moments(steps.time)
        first = seconds[0]
        elapsed = times[-1] - times[0] + first
        if not all(map(le, times, times[1:])):  # the clock was set back: what passed then is known from the step alone
            elapsed = first + sum(map(max, map(sub, times[1:], times), seconds[1:]))
        rest = seconds[1 :: max(1, (len(seconds) - 1) // _SAMPLE)]
        return cls(
            first_step=steps.step[0],
            last_step=steps.step[-1],
            count=len(steps),
            began=times[0] - first,
            ended=times[-1],
            seconds=sum(seconds),
            elapsed=elapsed,
            first=first,
            usual=median(rest) if rest else None,
        )


def duration(seconds: float) -> float:
    """As reported; 0 for what is no duration."""
    return seconds if 0 <= seconds < _LONGEST else 0.0


def _moments(times: array[float]) -> array[float]:
    if min(times) > -_LONGEST and max(times) < _LONGEST and isfinite(sum(times)):
        return times
    return array("d", [time if abs(time) < _LONGEST else 0.0 for time in times])


def total(seconds: array[float]) -> float:
    """Sum of what steps reported."""
    return sum(_durations(seconds)) if seconds else 0.0


def _durations(seconds: array[float]) -> array[float]:
    if min(seconds) >= 0 and sum(seconds) < _LONGEST:
        return seconds
    return array("d", map(duration, seconds))


@dataclass(frozen=True)
class Pause:
    """A validation or a save: the step after which it came, when it was reported, and its seconds of training."""

    step: int
    time: float
    seconds: float


def divide(
    stretch: Stretch | None,
    *,
    began: float,
    ended: float,
    kept: float,
    usual: float | None,
    failed: bool,
    evals: Sequence[Pause],
    saves: Sequence[Pause],
) -> Goodput:
    """What one start spent its time on, `waiting` excepted.

    began, ended: Unix seconds of its first and last record. kept: seconds in its steps that still count. usual: seconds
    of a step of this run, for a start that made only one. failed: it did not end well, so that what came after the last
    step was lost.
    """
    parts = Goodput()
    if stretch is None:
        whole = max(0.0, ended - began)
        parts.validation = min(whole, sum(e.seconds for e in evals))
        parts.start_up = whole - parts.validation
        return parts
    before = max(0.0, stretch.began - began)
    after = max(0.0, ended - stretch.ended)
    usual = usual if stretch.usual is None else stretch.usual
    compiled = max(0.0, stretch.first - usual) if usual is not None else 0.0

    first = [e.seconds for e in evals if e.step < stretch.first_step]
    last = [e.seconds for e in evals if e.step >= stretch.last_step and e.time >= stretch.ended]
    parts.validation = min(before, sum(first))
    parts.start_up = before - parts.validation + compiled
    after -= (checked := min(after, sum(last)))

    # While it trained: steps, and between them validation, saves and what nobody accounts for. A save may also have
    # held up a step from within: then it takes that time out of the step's.
    checking = sum(e.seconds for e in evals) - sum(first) - sum(last)
    between = max(0.0, stretch.elapsed - stretch.seconds - checking)
    parts.validation += checked + checking
    saving = sum(e.seconds for e in saves if e.step < stretch.last_step or e.time < stretch.ended)
    in_steps = stretch.seconds - compiled
    within = min(in_steps, max(0.0, saving - between))
    parts.checkpoint = min(saving, between) + within
    parts.other = between - min(saving, between)

    # The first step is the last to be lost.
    kept = min(in_steps, max(0.0, kept - compiled)) if kept > 0 else 0.0
    share = kept / in_steps if in_steps > 0 else 0.0
    parts.useful = (in_steps - within) * share
    parts.lost = (in_steps - within) * (1 - share)

    # After the last step. A start that ended well had nothing left to do but to save; one that did not, lost the step
    # it was in.
    late = [e for e in saves if e.time >= stretch.ended]
    if failed:
        saved = min(after, sum(e.seconds for e in late if e.step >= stretch.last_step))
        parts.lost += after - saved
    else:
        saved = min(after, max(0.0, max((e.time for e in late), default=0.0) - stretch.ended - checked))
        parts.other += after - saved
    parts.checkpoint += saved
    return parts
