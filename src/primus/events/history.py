"""The story of a run, read back from the event files of all its attempts."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from statistics import median
from typing import Any, Literal

from pydantic_core import from_json

from primus.errors import RunDirectoryError
from primus.events import jobs
from primus.events.attempt_files import AttemptFiles, Trained, read_attempt
from primus.events.attempts import Attempt
from primus.events.causes import root
from primus.events.goodput import Goodput, Stretch, duration, total
from primus.events.jsonl import PATTERN, Record
from primus.events.monitor import WRITER
from primus.events.starts import Telling, notes, tell
from primus.events.steps import Steps

Status = Literal["running", "complete", "stopped", "failed", "unknown"]

_ALIVE_SECONDS = 120.0


@dataclass
class RunHistory:
    """What happened in a run, attempts joined: after a resume, what the older attempts reported beyond the resume
    point is gone; of one step the latest record counts. ``plan`` is plan.json as plain values, None when absent or
    unreadable. evals, checkpoints, notices and failures are records with their ``attempt``."""

    directory: Path
    plan: dict[str, Any] | None = None
    status: Status = "unknown"
    steps: Steps = field(default_factory=Steps)
    evals: list[Record] = field(default_factory=list)
    checkpoints: list[Record] = field(default_factory=list)
    notices: list[Record] = field(default_factory=list)
    failures: list[Record] = field(default_factory=list)
    cause: Record | None = None
    """Of the failures, the one that ended the newest start; None when no rank said anything then."""
    attempts: list[Attempt] = field(default_factory=list)
    garbled: int = 0
    """Lines that were no records."""
    goodput: Goodput | None = None
    """Where the time went, first to last record; None when the files were read in part."""

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def total_steps(self) -> int | None:
        try:
            steps = self.plan["experiment"]["train"]["steps"] if self.plan else None
        except (KeyError, TypeError):
            return None
        return steps if isinstance(steps, int) else None

    @property
    def seconds(self) -> float:
        """Time the attempts ran, pauses between them left out."""
        return sum(attempt.seconds for attempt in self.attempts)

    @property
    def tokens(self) -> int:
        """Tokens trained on by the steps that count."""
        return sum(self.steps.tokens)


@dataclass(frozen=True)
class _Rows:
    """Whose steps the joined ones are, from row `first` on."""

    telling: Telling
    first: int


def read_run(run_directory: Path, *, alive: bool | None = None, tail: int | None = None) -> RunHistory:
    """Read all attempts of a run. Torn and garbled lines are skipped and counted.

    tail: read only so many last bytes of each file, which is enough for the status and the newest figures.

    alive: whether a process holds the run's lock now; unknown (None), an attempt without an end counts as running
    while its files changed in the last two minutes. Raises RunDirectoryError when the directory cannot be read.
    """
    directory = Path(run_directory).absolute()
    history = RunHistory(directory)
    newest_change = 0.0
    owners: list[_Rows] = []
    told: list[list[Telling]] = []
    try:
        history.plan = _read_plan(directory / "plan.json")
        for number, folder in _attempts(directory):
            files = sorted(folder.glob(PATTERN))
            newest_change = max([newest_change, *(file.stat().st_mtime for file in files)])
            told.append(_join(history, number, read_attempt(files, tail), owners))
    except OSError as error:
        raise RunDirectoryError(f"the run cannot be read: {error.strerror}", where=str(error.filename)) from error
    _conclude(history, told, owners, jobs.submitted(directory))
    jobs.explain(history.attempts, jobs.read_starts(directory))
    if tail is not None:
        history.goodput = None
    if alive is None:
        alive = time.time() - newest_change < _ALIVE_SECONDS
    history.status = _status(history, alive, over=bool(told and told[-1] and told[-1][-1].reasons))
    return history


def was_validated(run_directory: Path, step: int) -> bool:
    """Whether the run's validation loss after `step` is known, or cannot be: nothing is worth less than going on."""
    try:
        return any(record["step"] == step for record in read_run(run_directory).evals)
    except RunDirectoryError:
        return True


def _read_plan(path: Path) -> dict[str, Any] | None:
    try:
        plan = from_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return plan if isinstance(plan, dict) else None


def _attempts(directory: Path) -> list[tuple[int, Path]]:
    try:
        folders = list((directory / "attempts").iterdir())
    except FileNotFoundError:
        return []
    return sorted((int(path.name), path) for path in folders if path.name.isascii() and path.name.isdigit())


def _join(history: RunHistory, number: int, read: AttemptFiles, owners: list[_Rows]) -> list[Telling]:
    """Take one attempt in, the next by number."""
    attempt = Attempt(number)
    history.attempts.append(attempt)
    history.garbled += read.garbled
    times = [record["time"] for record in read.records if record.get("writer") != WRITER]  # it outlives the run
    stretches = {}
    for trained in read.trained:
        trained.steps.drop(trained.resumed_from)  # what a process of an ended start said late
        stretches[id(trained.record)] = Stretch.of(trained.steps)
        if trained.steps:
            times += trained.steps.time[0], trained.steps.time[-1]
    if times:
        attempt.started, attempt.last_record = min(times), max(times)
    told = tell(read.records, stretches)
    _join_steps(history, read.trained, {id(telling.run): telling for telling in told}, owners)
    kinds = {"notice": history.notices, "rank_failed": history.failures}
    by_step = {"eval_done": history.evals, "checkpoint_saved": history.checkpoints}
    points = {id(trained.record): trained.resumed_from for trained in read.trained}
    for record in read.records:
        kind = record["event"]
        record["attempt"] = number
        if id(record) in points:
            for records in by_step.values():
                _forget(records, points[id(record)])
        if kind == "run_started":
            attempt.notes = notes(record)
        elif kind in kinds:
            kinds[kind].append(record)
        elif kind in by_step:
            _put(by_step[kind], record)
    return told


def _join_steps(
    history: RunHistory, trained: Iterable[Trained], told: Mapping[int, Telling], owners: list[_Rows]
) -> None:
    """Later starts replace what earlier ones reported beyond the point they began from."""
    joined = history.steps
    for one in trained:
        joined.cut(one.resumed_from + 1)
        while owners and owners[-1].first >= len(joined):
            owners.pop()
        if one.steps:
            owners.append(_Rows(told[id(one.record)], len(joined)))
            joined.append(one.steps)


def _forget(records: list[Record], point: int) -> None:
    while records and records[-1]["step"] > point:
        records.pop()


def _put(records: list[Record], record: Record) -> None:
    """Keep the records in the order of their steps, and the latest of each step."""
    index = bisect_left(records, record["step"], key=itemgetter("step"))
    known = index < len(records) and records[index]["step"] == record["step"]
    records[index : index + known] = [record]


def _conclude(
    history: RunHistory, told: Sequence[Sequence[Telling]], owners: Sequence[_Rows], queued: float | None
) -> None:
    """Sum up every start, now that it is known which steps count. queued: since when the run had waited for the first
    one."""
    seconds = history.steps.seconds
    for rows, after in zip_longest(owners, owners[1:]):
        kept = seconds[rows.first : after.first if after else None]
        rows.telling.kept_steps, rows.telling.kept_seconds = len(kept), total(kept)
    if told and told[-1] and told[-1][-1].failures:
        history.cause = root(told[-1][-1].failures)
    some = seconds[:: max(1, len(seconds) // 1000)]
    usual = duration(median(some)) if some else None
    ended = queued
    history.goodput = Goodput()
    for attempt, tellings in zip(history.attempts, told, strict=True):
        for telling in tellings:
            telling.conclude(ended, usual, last=telling is tellings[-1])
            attempt.starts.append(telling.start)
            ended = telling.start.ended if telling.start.ended is not None else ended
            history.goodput.add(telling.start.goodput)
        end = attempt.starts[-1].end if attempt.starts else None
        attempt.reason = end if end in (None, "complete", "stopped") else "failed"


def _status(history: RunHistory, alive: bool, *, over: bool) -> Status:
    """over: whether anyone said that the run has ended; without that, a living one mends what has failed."""
    reason = history.attempts[-1].reason if history.attempts else None
    if reason in ("complete", "stopped", "failed") and (over or not alive):
        return reason  # type: ignore[return-value]
    return "running" if alive else "unknown"
