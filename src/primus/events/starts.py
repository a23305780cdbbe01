"""The starts of an attempt, told apart and put together from what its writers reported.

One is told from the next by the writers on the first node alone: they share a clock.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from primus.events.attempt_files import ROWS
from primus.events.attempts import Start
from primus.events.causes import root
from primus.events.goodput import Pause, Stretch, divide, duration
from primus.events.jsonl import Record


@dataclass
class Telling:
    """A start while its story is put together. run: what says that it began to train. nodes, ranks: by node rank, name
    and (first, last) rank; shared between starts of the same processes."""

    start: Start = field(default_factory=Start)
    nodes: dict[int, str] = field(default_factory=dict)
    ranks: dict[int, tuple[int, int]] = field(default_factory=dict)
    run: Record | None = None
    stretch: Stretch | None = None
    kept_seconds: float = 0.0
    kept_steps: int = 0
    evals: list[Pause] = field(default_factory=list)
    saves: list[Pause] = field(default_factory=list)
    failures: list[Record] = field(default_factory=list)
    reasons: set[str] = field(default_factory=set)
    ended: float = -inf
    """When ranks last said why the run ends, before all time when none did."""
    joined: float = inf
    """When ranks were last started again beside others that trained on, after all time when none were."""

    def _outlived(self) -> bool:
        """Whether the run went on to its own end, or goes on, after the failures: they were those of replica groups."""
        going_on = self.stretch is not None and self.stretch.ended > self.joined
        ended = self.stretch.ended if self.stretch is not None and going_on else self.ended
        return "failed" not in self.reasons and ended > max(record["time"] for record in self.failures)

    def conclude(self, previous: float | None, usual: float | None, *, last: bool) -> None:
        """Sum up, when all is known. previous: when the start before it ended; usual: seconds of a step of the run;
        last: of its attempt."""
        start, stretch = self.start, self.stretch
        start.nodes = [self.nodes[rank] for rank in sorted(self.nodes)]
        if start.ranks is None and self.ranks:
            start.ranks = sum(last - first + 1 for first, last in self.ranks.values())
        if self.failures and not self._outlived():
            first = root(self.failures)
            start.end = first.get("cause") or "error"
            start.failure = f"rank {first['rank']} on {first['node']}: {first['error']}"
        elif self.reasons:
            start.end = next((word for word in ("failed", "stopped", "complete") if word in self.reasons), None)
        if stretch is not None:
            start.first_step, start.last_step, start.steps = stretch.first_step, stretch.last_step, stretch.count
            start.lost_steps = stretch.count - self.kept_steps
            start.began = stretch.began if start.began is None else start.began
            start.ended = stretch.ended if start.ended is None else max(start.ended, stretch.ended)
        if start.began is None or start.ended is None:
            return
        start.goodput = divide(
            stretch,
            began=start.began,
            ended=start.ended,
            kept=self.kept_seconds,
            usual=usual,
            failed=start.end not in ("complete", "stopped") and not (last and start.end is None),
            evals=self.evals,
            saves=self.saves,
        )
        if previous is not None:
            start.goodput.waiting = max(0.0, start.began - previous)


def tell(records: Sequence[Record], stretches: Mapping[int, Stretch | None]) -> list[Telling]:
    """The starts of one attempt. records: of all its writers, merged by time, each writer's in its own order.
    stretches: the steps of each start, by the identity of its ``run_started`` (or ROWS) record."""
    hosts = {r["node_rank"]: r["node"] for r in records if r["event"] == "attempt_started"}
    top = max((r["last_rank"] for r in records if r["event"] == "ranks_started" and r["node_rank"] == 0), default=0)
    near: list[Record] = []
    far: list[Record] = []
    for record in records:
        first = record["event"] in ("run_started", ROWS) or _node_of(record, {0: (0, top)}) == 0
        (near if first else far).append(record)
    starts = _from_near(near or far, stretches)
    if near:
        _add_far(starts, far)
    for telling in starts:
        if not telling.nodes:
            telling.nodes = hosts
    return starts


def _from_near(records: Iterable[Record], stretches: Mapping[int, Stretch | None]) -> list[Telling]:
    starts: list[Telling] = []
    for record in records:
        kind = record["event"]
        current = starts[-1] if starts else Telling()
        if kind == "ranks_started" and record["node_rank"] in current.nodes:
            current = Telling()
        elif kind in ("run_started", ROWS) and current.run is not None:
            current = _again(current, record)
        if not starts or current is not starts[-1]:
            starts.append(current)
        if kind == "ranks_started":
            current.start.restart = record["restart"]
            _take_ranks(current, record)
        elif kind in ("run_started", ROWS):
            _take_run(current, record, stretches[id(record)])
        _take(current, record)
    return starts


def _again(before: Telling, record: Record) -> Telling:
    """The start after `before` of which only the ranks speak. When their agent says nothing, it did not start them
    again: they have gone back to a checkpoint, because of an anomaly."""
    if before.start.restart is None:
        return Telling()
    if not before.failures and not before.reasons:
        before.start.end, before.start.failure = "anomaly", "; ".join(notes(record))
        before.start.ended = record["time"]
    return Telling(Start(restart=before.start.restart), before.nodes, before.ranks)


def notes(record: Record) -> list[str]:
    """Of a ``run_started``."""
    given = record.get("notes")
    return [str(note) for note in given] if isinstance(given, list) else []


def _take_ranks(telling: Telling, record: Record) -> None:
    telling.nodes[record["node_rank"]] = record["node"]
    telling.ranks[record["node_rank"]] = (record["first_rank"], record["last_rank"])


def _take_run(telling: Telling, record: Record, stretch: Stretch | None) -> None:
    telling.run, telling.stretch = record, stretch
    if record["event"] == "run_started":
        start = telling.start
        start.resumed_from, start.ranks = record.get("resumed_from"), record["world_size"]
        start.device = record["device"]


def _take(telling: Telling, record: Record) -> None:
    """What a record of the first node tells of the start it came in."""
    start, kind, time = telling.start, record["event"], record["time"]
    if kind != ROWS:
        start.began = time if start.began is None else start.began
        start.ended = time
    if kind == "eval_done":
        telling.evals.append(Pause(record["step"], time, duration(record["seconds"])))
    elif kind == "checkpoint_saved":
        telling.saves.append(Pause(record["step"], time, duration(record["blocked_seconds"])))
    else:
        _take_end(telling, record)


def _take_end(telling: Telling, record: Record) -> None:
    if record["event"] == "rank_failed":
        telling.failures.append(record)
    elif record["event"] == "run_ended":
        telling.reasons.add(record["reason"])
        telling.ended = max(telling.ended, record["time"])


def _add_far(starts: list[Telling], records: Iterable[Record]) -> None:
    """What other nodes tell. Their clocks may differ: that an agent has started its ranks for the n-th time says to
    which start its records belong; without its word, the time."""
    began = [telling.start.began or 0.0 for telling in starts]
    numbers = {telling.start.restart: index for index, telling in enumerate(starts)}
    now: dict[int, int] = {}
    known: dict[int, tuple[int, int]] = {}
    for record in records:
        kind, node = record["event"], _node_of(record, known)
        by_time = max(0, bisect_right(began, record["time"]) - 1)
        if kind == "ranks_started":
            now[node] = numbers.get(record["restart"], by_time)
            if record["restart"] not in numbers:
                starts[now[node]].joined = record["time"]
            known[node] = (record["first_rank"], record["last_rank"])
            _take_ranks(starts[now[node]], record)
        elif kind == "run_ended":
            _take_end(starts[-1], record)
        elif kind == "rank_failed":
            index = now.get(node, by_time)
            starts[index].failures.append(record)
            if index + 1 < len(starts):  # it ended then, if only the other node says so
                start, after = starts[index].start, starts[index + 1].start
                start.ended = max(start.ended or 0.0, min(record["time"], after.began or 0.0))


def _node_of(record: Record, known: Mapping[int, tuple[int, int]]) -> int:
    """Rank of the node whose clock a record has; -1 when that is not known. known: first and last rank of nodes."""
    found = _WRITER.fullmatch(str(record.get("writer")))
    if not found:
        return -1
    number = int(found[2] or 0)
    if found[1] != "rank":
        return number
    return next((node for node, (first, last) in known.items() if first <= number <= last), -1)


_WRITER = re.compile(r"(rank|node|launcher)(\d{0,9})")
