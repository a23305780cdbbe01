"""The attempts of a run, and within each the starts of its ranks: where, from when to when, with what end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from primus.events import units
from primus.events.goodput import Goodput


@dataclass
class Start:
    """One start of the ranks: the first of an attempt, a restart, or a return to a checkpoint by the same processes.

    restart: as its agents count, None without their word. nodes: names, by node rank. ranks: how many. began, ended:
    Unix seconds of its first and last record on the first node. steps: how many it trained, of which lost_steps count
    no more. end: ``complete``, ``stopped``, ``failed``, the cause of a failure (``error``, ``died``, ``hang``,
    ``anomaly``, ``node``, ``job``), or None: it runs, or nobody could report its end. failure: in one line, of which
    rank or why.
    """

    restart: int | None = None
    nodes: list[str] = field(default_factory=list)
    ranks: int | None = None
    device: str | None = None
    resumed_from: int | None = None
    began: float | None = None
    ended: float | None = None
    first_step: int | None = None
    last_step: int | None = None
    steps: int = 0
    lost_steps: int = 0
    end: str | None = None
    failure: str = ""
    goodput: Goodput = field(default_factory=Goodput)


@dataclass
class Attempt:
    """One launch, in which the processes may have been started several times. Times are Unix seconds of the first and
    last record, None without any; resumed_from, world_size and device are of the last start; ``reason`` is None while
    it runs or when it was killed."""

    number: int
    started: float | None = None
    last_record: float | None = None
    reason: str | None = None
    notes: list[str] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Time it ran, what it waited for its beginning left out."""
        waited = self.starts[0].goodput.waiting if self.starts else 0.0
        return max(0.0, self.goodput.total - waited)

    @property
    def goodput(self) -> Goodput:
        parts = Goodput()
        for start in self.starts:
            parts.add(start.goodput)
        return parts

    @property
    def restarts(self) -> int:
        return max(0, len(self.starts) - 1)

    @property
    def nodes(self) -> list[str]:
        return self.starts[-1].nodes if self.starts else []

    @property
    def first_step(self) -> int | None:
        """The first step it trained, the later superseded included; as ``last_step``."""
        return min((start.first_step for start in self.starts if start.first_step is not None), default=None)

    @property
    def last_step(self) -> int | None:
        return next((start.last_step for start in reversed(self.starts) if start.steps), None)

    @property
    def lost_steps(self) -> int:
        return sum(start.lost_steps for start in self.starts)

    @property
    def resumed_from(self) -> int | None:
        return self.starts[-1].resumed_from if self.starts else None

    @property
    def world_size(self) -> int | None:
        return next((start.ranks for start in reversed(self.starts) if start.device), None)

    @property
    def device(self) -> str | None:
        return next((start.device for start in reversed(self.starts) if start.device), None)


@dataclass(frozen=True)
class Row:
    """A start, or an attempt without any, in the words of people. number: of the attempt, for its later starts with
    theirs: ``3.1``. began: Unix seconds."""

    number: str
    began: float | None = None
    nodes: str = "-"
    ranks: str = "-"
    resumed_from: str = "-"
    steps: str = "-"
    lost: str = "-"
    duration: str = "-"
    useful: str = "-"
    ended: str = "no event"


_ENDS = {"error": "rank failed", "died": "rank died", "node": "node failed", "job": "job ended"}


def rows(attempts: Sequence[Attempt], *, running: bool) -> list[Row]:
    """running: whether the last start of all has not ended."""
    found = []
    for attempt in attempts:
        if not attempt.starts:
            found.append(Row(str(attempt.number)))
        for index, start in enumerate(attempt.starts):
            last = attempt is attempts[-1] and start is attempt.starts[-1]
            number = f"{attempt.number}.{index}" if index else str(attempt.number)
            found.append(_row(number, start, running=running and last))
    return found


def _row(number: str, start: Start, *, running: bool) -> Row:
    took = max(0.0, start.goodput.total - start.goodput.waiting)
    ended = "running" if running else "no end reported"
    if start.end is not None:
        ended = ": ".join(filter(None, [_ENDS.get(start.end, start.end), start.failure.partition("\n")[0]]))
    return Row(
        number=number,
        began=start.began,
        nodes=_names(start.nodes),
        ranks="-" if start.ranks is None else f"{start.ranks:,}",
        resumed_from="-" if start.resumed_from is None else f"{start.resumed_from:,}",
        steps=f"{start.first_step:,} to {start.last_step:,}" if start.steps else "-",
        lost=f"{start.lost_steps:,}" if start.lost_steps else "-",
        duration=units.duration(took),
        useful=units.percent(start.goodput.useful / took) if took > 0 else "-",
        ended=ended,
    )


def _names(nodes: Sequence[str]) -> str:
    if len(nodes) <= 2:
        return ", ".join(nodes) or "-"
    return f"{nodes[0]} and {len(nodes) - 1} more"
