"""The event files of one attempt, read whole: steps as columns, start by start, everything else as records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from heapq import merge
from operator import itemgetter
from pathlib import Path

from pydantic_core import from_json

from primus.events.jsonl import Record, decode, read_lines, well_formed
from primus.events.steps import Steps

ROWS = "rows"
"""Kind of the record that stands for steps whose own start was not reported."""

_STEP_LINE = b'{"event":"step_done",'
_CHUNK = 500
"""Lines parsed at once; more of them leave the processor's cache."""


@dataclass
class Trained:
    """The steps of one start. record: its ``run_started``, or one of kind ROWS."""

    record: Record
    steps: Steps = field(default_factory=Steps)

    @property
    def resumed_from(self) -> int:
        """The step after which it began: what was reported beyond it before is history no more."""
        if self.record["event"] == ROWS:
            return self.steps.step[0] - 1 if self.steps else 0
        return self.record.get("resumed_from") or 0


@dataclass
class AttemptFiles:
    """records: of all writers, by time, but each writer's in its own order, as clocks jump; steps are in `trained`
    instead. garbled: lines that were no records."""

    trained: list[Trained] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)
    garbled: int = 0


def read_attempt(files: Iterable[Path], tail: int | None) -> AttemptFiles:
    """tail: read only so many last bytes of each file. Raises OSError."""
    read = AttemptFiles()
    read.records = list(merge(*(_read_file(read, file, tail) for file in files), key=itemgetter("time")))
    return read


def _read_file(read: AttemptFiles, file: Path, tail: int | None) -> list[Record]:
    records: list[Record] = []
    lost = current = Trained({"event": ROWS, "time": 0.0, "writer": file.stem.removeprefix("events-")})
    for lines in _chunks(read_lines(file, tail=tail)):
        start = decode(lines[0]) if _starts(lines[0]) else None
        if start is not None and start["event"] == "run_started" and well_formed(start):
            current = Trained(start)
            read.trained.append(current)
        step_lines = [line for line in lines if line.startswith(_STEP_LINE)]
        try:
            current.steps.extend(from_json(b"[" + b",".join(step_lines) + b"]"))
        except (ValueError, LookupError, TypeError, OverflowError):  # NaN losses and garbage: one by one
            _read_carefully(read, current, records, step_lines)
        _read_carefully(read, current, records, [line for line in lines if not line.startswith(_STEP_LINE)])
    if lost.steps:
        lost.record["time"] = lost.steps.time[0]
        read.trained.insert(len(read.trained) - sum(r["event"] == "run_started" for r in records), lost)
        records.insert(0, lost.record)
    return records


def _chunks(lines: Iterator[bytes]) -> Iterator[list[bytes]]:
    """Lines in portions; a start of the processes begins a new one."""
    chunk: list[bytes] = []
    for line in lines:
        if len(chunk) == _CHUNK or (chunk and _starts(line)):
            yield chunk
            chunk = []
        chunk.append(line)
    if chunk:
        yield chunk


def _starts(line: bytes) -> bool:
    return not line.startswith(_STEP_LINE) and b'"run_started"' in line


def _read_carefully(read: AttemptFiles, current: Trained, records: list[Record], lines: Iterable[bytes]) -> None:
    for line in lines:
        record = decode(line)
        if record is None or not well_formed(record):
            read.garbled += bool(line.strip())
        elif record["event"] == "run_started":
            records.append(current.record)  # the same object, by which it is found again
        elif record["event"] != "step_done":
            records.append(record)
        else:
            try:
                current.steps.extend([{"mfu": None, **record}])
            except (LookupError, TypeError, OverflowError):
                read.garbled += 1
