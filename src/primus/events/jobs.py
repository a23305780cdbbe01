"""What a batch system's jobs add to the story of a run: since when it was queued, and why a start ended of which nobody
in the job could report the end. Read from ``jobs/K/`` of the run directory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from primus.events.attempts import Attempt

ENDS = {
    "done": "complete",
    "failed": "failed",
    "stopped": "stopped",
    "again": "queued again",
    "left": "queued again",
}
"""Events of a job's record that say how one of its starts ended, and that in words."""


@dataclass(frozen=True)
class JobStart:
    """One start of a job, from `began` to `ended` (Unix seconds; None: it runs, or nobody noted it). step: that the run
    had reached before; outcome, reason: how it ended, in words of ours, and why; empty where nobody said so."""

    began: float
    ended: float | None
    nodes: tuple[str, ...]
    step: int
    outcome: str = ""
    reason: str = ""

    @property
    def end(self) -> str:
        """In one line."""
        return ": ".join(filter(None, [self.outcome, self.reason if self.reason != self.outcome else ""]))


def submitted(run: Path) -> float | None:
    """When the run was first given to a batch system; None when it never was, or that cannot be told."""
    try:
        times = [file.stat().st_mtime for file in (run / "jobs").glob("*/job.json")]
    except OSError:
        return None
    return min(times, default=None)


def read_starts(run: Path) -> list[JobStart]:
    """The starts of all jobs of a run, by time."""
    found: list[JobStart] = []
    for file in (run / "jobs").glob("*/record.jsonl"):
        found += starts_of(read_record(file))
    return sorted(found, key=lambda start: start.began)


def read_record(file: Path) -> list[dict[str, Any]]:
    """The entries of a job's ``record.jsonl``, oldest first; lines that are none are left out, a missing file has
    none."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    return [entry for line in lines if (entry := _entry(line)) is not None]


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = from_json(line, allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("event"), str):
        return None
    return entry if isinstance(entry.get("time"), int | float) else None


def starts_of(records: Sequence[dict[str, Any]]) -> Iterator[JobStart]:
    """The starts that a job's record tells of, oldest first."""
    for index, record in enumerate(records):
        if record["event"] != "started":
            continue
        after = next((r for r in records[index + 1 :] if r["event"] in {"started", *ENDS}), None)
        nodes, step = record.get("nodes"), record.get("step")
        start = JobStart(
            began=record["time"],
            ended=after["time"] if after else None,
            nodes=tuple(map(str, nodes)) if isinstance(nodes, list) else (),
            step=step if isinstance(step, int) else 0,
        )
        if after is None:
            yield start
        elif after["event"] == "started":  # without a word: over the head of its batch step
            yield replace(start, reason="queued again by the batch system")
        else:
            yield replace(start, outcome=ENDS[after["event"]], reason=str(after.get("reason") or ""))


def explain(attempts: Sequence[Attempt], starts: Sequence[JobStart]) -> None:
    """Say of the last start of attempts that a job ended: a lost node is its end, whatever the ranks that were left
    said; otherwise the job's reason is, for one that stopped or told no end."""
    for job in starts:
        within = [a for a in attempts if a.starts and job.began <= (a.starts[0].began or 0.0) < (job.ended or 0.0)]
        if not within:
            continue
        last = within[-1].starts[-1]
        if last.end != "complete" and any(job.reason.startswith(f"{node}: ") for node in job.nodes):
            last.end, last.failure = "node", job.reason
        elif last.end is None:
            last.end, last.failure = "job", job.reason
        elif last.end == "stopped":
            last.failure = job.reason
