"""The story of a run, read back from the event files of all its attempts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from pydantic_core import from_json

from primus.errors import RunDirectoryError
from primus.events.jsonl import PATTERN, Record, decode, read_lines, well_formed
from primus.events.steps import Steps

Status = Literal["running", "complete", "stopped", "failed", "unknown"]

_STEP_LINE = b'{"event":"step_done",'
_START_LINE = b'{"event":"run_started",'
_CHUNK = 500
"""Lines parsed at once; more of them leave the processor's cache."""
_ALIVE_SECONDS = 120.0


@dataclass
class Attempt:
    """One launch, in which the processes may have been restarted. Times are Unix seconds of the first and last record,
    None without any; steps are those it reported, the later superseded included; resumed_from and devices are of the
    last start; ``reason`` is None while it runs or when it was killed."""

    number: int
    started: float | None = None
    last_record: float | None = None
    resumed_from: int | None = None
    world_size: int | None = None
    device: str | None = None
    first_step: int | None = None
    last_step: int | None = None
    reason: str | None = None
    restarts: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        if self.started is None or self.last_record is None:
            return 0.0
        return max(0.0, self.last_record - self.started)


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
    attempts: list[Attempt] = field(default_factory=list)
    garbled: int = 0
    """Lines that were no records."""

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


def read_run(run_directory: Path, *, alive: bool | None = None, tail: int | None = None) -> RunHistory:
    """Read all attempts of a run. Torn and garbled lines are skipped and counted.

    tail: read only so many last bytes of each file, which is enough for the status and the newest figures.

    alive: whether a process holds the run's lock now; unknown (None), an attempt without an end counts as running
    while its files changed in the last two minutes. Raises RunDirectoryError when the directory cannot be read.
    """
    directory = Path(run_directory).absolute()
    history = RunHistory(directory)
    newest_change = 0.0
    try:
        history.plan = _read_plan(directory / "plan.json")
        for number, folder in _attempts(directory):
            files = sorted(folder.glob(PATTERN))
            newest_change = max([newest_change, *(file.stat().st_mtime for file in files)])
            _join(history, _read_attempt(number, files, tail))
    except OSError as error:
        raise RunDirectoryError(f"the run cannot be read: {error.strerror}", where=str(error.filename)) from error
    if alive is None:
        alive = time.time() - newest_change < _ALIVE_SECONDS
    history.status = _status(history, alive)
    return history


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


@dataclass
class _Read:
    attempt: Attempt
    steps: Steps = field(default_factory=Steps)
    others: list[Record] = field(default_factory=list)
    garbled: int = 0


def _read_attempt(number: int, files: Iterable[Path], tail: int | None) -> _Read:
    read = _Read(Attempt(number))
    others: list[list[Record]] = []
    for file in files:
        for lines in _chunks(read_lines(file, tail=tail)):
            if lines[0].startswith(_START_LINE):
                start = decode(lines[0])
                if start is not None and well_formed(start):
                    read.steps.cut((start.get("resumed_from") or 0) + 1)
            step_lines = [line for line in lines if line.startswith(_STEP_LINE)]
            try:
                read.steps.extend(from_json(b"[" + b",".join(step_lines) + b"]"))
            except (ValueError, LookupError, TypeError, OverflowError):  # NaN losses and garbage: one by one
                _read_carefully(read, step_lines)
            _read_carefully(read, [line for line in lines if not line.startswith(_STEP_LINE)])
        others.append(read.others)
        read.others = []
    # By time across writers, but never against a writer's own order: clocks jump.
    read.others = list(merge(*others, key=itemgetter("time")))
    _describe(read)
    return read


def _chunks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lines in portions; a start of the processes begins a new one."""
    chunk: list[bytes] = []
    for line in lines:
        if len(chunk) == _CHUNK or (chunk and line.startswith(_START_LINE)):
            yield chunk
            chunk = []
        chunk.append(line)
    if chunk:
        yield chunk


def _read_carefully(read: _Read, lines: Iterable[bytes]) -> None:
    steps: list[Record] = []
    for line in lines:
        record = decode(line)
        if record is None or not well_formed(record):
            read.garbled += bool(line.strip())
        elif record["event"] != "step_done":
            read.others.append(record)
        else:
            steps.append(record)
    for record in steps:
        try:
            read.steps.extend([{"mfu": None, **record}])
        except (LookupError, TypeError, OverflowError):
            read.garbled += 1


def _describe(read: _Read) -> None:
    attempt = read.attempt
    times = [record["time"] for record in read.others]
    if read.steps:
        attempt.first_step, attempt.last_step = read.steps.step[0], read.steps.step[-1]
        times += [read.steps.time[0], read.steps.time[-1]]
    if times:
        attempt.started, attempt.last_record = min(times), max(times)
    starts = [index for index, record in enumerate(read.others) if record["event"] == "run_started"]
    for record in read.others:
        record["attempt"] = attempt.number
    if starts:
        last = read.others[starts[-1]]
        attempt.restarts = len(starts) - 1
        attempt.resumed_from = last.get("resumed_from")
        attempt.world_size, attempt.device = last["world_size"], last["device"]
        attempt.notes = [str(note) for note in last.get("notes") or ()]
    after = read.others[starts[-1] :] if starts else read.others
    reasons = {record["reason"] for record in after if record["event"] == "run_ended"}
    if any(record["event"] == "rank_failed" for record in after):
        reasons.add("failed")
    attempt.reason = next((reason for reason in ("failed", "stopped", "complete") if reason in reasons), None)


def _join(history: RunHistory, read: _Read) -> None:
    attempt = read.attempt
    history.attempts.append(attempt)
    history.garbled += read.garbled
    kinds = {
        "notice": history.notices,
        "rank_failed": history.failures,
        "eval_done": history.evals,
        "checkpoint_saved": history.checkpoints,
    }
    if attempt.first_step is not None and attempt.world_size is None:  # its start was lost
        _forget(history, attempt.first_step - 1)
    for record in read.others:
        if record["event"] == "run_started":  # what was reported beyond the point it resumes from is history no more
            _forget(history, record.get("resumed_from") or 0)
        elif record["event"] in kinds:
            kinds[record["event"]].append(record)
    if read.steps:
        history.steps.cut(read.steps.step[0])
    history.steps.append(read.steps)
    history.evals[:] = _latest(history.evals)
    history.checkpoints[:] = _latest(history.checkpoints)


def _forget(history: RunHistory, point: int) -> None:
    history.steps.cut(point + 1)
    for records in (history.evals, history.checkpoints):
        records[:] = [record for record in records if record["step"] <= point]


def _latest(records: list[Record]) -> list[Record]:
    by_step = {record["step"]: record for record in records}
    return [by_step[step] for step in sorted(by_step)]


def _status(history: RunHistory, alive: bool) -> Status:
    reason = history.attempts[-1].reason if history.attempts else None
    if reason in ("complete", "stopped", "failed"):
        return reason  # type: ignore[return-value]
    return "running" if alive else "unknown"
