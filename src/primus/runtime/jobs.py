"""A job of a batch system in the run directory: ``runs/<name>/jobs/K/``.

job.json       the command line and its places, as they were given
plan.json      the plan, made where the job was submitted
script.sh      what the batch system was handed
id             the batch system's number of the job
job.log        what the job prints
record.jsonl   what became of it: when it started, on which nodes, why it was queued again
starts/R/      the R-th start: which nodes see this directory, node 0's attempt, how each node ended
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from primus.errors import RunDirectoryError
from primus.events.jobs import read_record
from primus.launch.places import Places
from primus.plan.plan import Plan
from primus.runtime.job import Job
from primus.runtime.lock import Owner
from primus.runtime.run_directory import write_atomically

PLACES: TypeAdapter[Places] = TypeAdapter(Places)


@dataclass(frozen=True)
class JobDirectory:
    """``path`` need not exist before ``write``. ``number`` counts from 1."""

    path: Path

    @classmethod
    def all(cls, run: Path) -> list[JobDirectory]:
        """Those of a run, oldest first."""
        try:
            numbers = sorted(int(name) for name in os.listdir(run / "jobs") if name.isdecimal())
        except (FileNotFoundError, NotADirectoryError):
            return []
        return [cls(run / "jobs" / str(number)) for number in numbers]

    @classmethod
    def next(cls, run: Path) -> JobDirectory:
        found = cls.all(run)
        return cls(run / "jobs" / str(found[-1].number + 1 if found else 1))

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def script(self) -> Path:
        return self.path / "script.sh"

    @property
    def log(self) -> Path:
        return self.path / "job.log"

    @property
    def plan(self) -> Path:
        return self.path / "plan.json"

    @property
    def id(self) -> str:
        """The batch system's number; empty before it has one."""
        try:
            return (self.path / "id").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return ""

    def accept(self, number: str) -> None:
        """Keep the batch system's number."""
        write_atomically(self.path / "id", number + "\n")

    def write(self, job: Job, places: Places) -> None:
        """Make the directory with what the job's nodes read."""
        self.path.mkdir(parents=True)
        write_atomically(self.plan, job.plan.to_json())
        written = {"argv": list(job.argv), "places": PLACES.dump_python(places, mode="json")}
        write_atomically(self.path / "job.json", json.dumps(written, indent=2) + "\n")

    def places(self) -> Places:
        return PLACES.validate_python(self._job()["places"])

    def argv(self) -> tuple[str, ...]:
        return tuple(self._job()["argv"])

    def _job(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunDirectoryError(
                f"the job cannot be read: {error}", where=str(self.path), remedy="submit it again"
            ) from error
        return found

    def require(self, node: str) -> None:
        """Raise RunDirectoryError when this node, called `node`, does not see the files that every node reads."""
        if not self.plan.exists():
            raise RunDirectoryError(
                f"node {node} does not see the job's files, which were written where it was submitted",
                where=str(self.path),
                remedy="keep runs on a file system that all nodes share: --runs-dir DIR (or PRIMUS_RUNS)",
            )

    def start(self, number: int) -> Start:
        return Start(self.path / "starts" / str(number))

    def note(self, event: str, **facts: object) -> None:
        """Add to the record; it must not keep a job from going on when it cannot be written."""
        line = json.dumps({"time": time.time(), "event": event, **facts})
        with suppress(OSError), (self.path / "record.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def record(self) -> list[dict[str, Any]]:
        return read_record(self.path / "record.jsonl")


@dataclass(frozen=True)
class Ending:
    """How one node's share of a start ended. code: its exit code; broken: its processes died around the ranks, not one
    of the ranks by itself, so that another start may end otherwise."""

    node: str
    code: int
    broken: bool = False


@dataclass(frozen=True)
class Start:
    """``starts/R/``: where the nodes of one start find each other. All methods are for any node; reading is by opening
    files anew, which is what shared file systems keep consistent."""

    directory: Path

    @property
    def plan(self) -> Path:
        """A plan for other nodes than were asked for; need not exist."""
        return self.directory / "plan.json"

    def planned(self, job: JobDirectory) -> Plan:
        return Plan.load(self.plan if self.plan.exists() else job.plan)

    def meet(self, rank: int, name: str, count: int, patience: float) -> dict[int, dict[str, Any]]:
        """Say that this node is here and wait for the others. Returns what each has said, ``node`` and ``skew``, the
        seconds its clock is ahead of the file server's. Raises RunDirectoryError that names the nodes of which nothing
        is seen after `patience` seconds: the directory is not shared with them."""
        mine = self.directory / f"seen-{rank}.json"
        self.directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        write_atomically(mine, json.dumps({"node": name, "skew": 0.0}))
        write_atomically(mine, json.dumps({"node": name, "skew": now - mine.stat().st_mtime}))
        until = time.monotonic() + patience
        while True:
            seen = {other: said for other in range(count) if (said := _read(self.directory / f"seen-{other}.json"))}
            if len(seen) == count:
                return seen
            if time.monotonic() > until:
                here = ", ".join(str(said["node"]) for said in seen.values())
                missing = [str(other) for other in range(count) if other not in seen]
                raise RunDirectoryError(
                    f"node {name} sees what these nodes write: {here}; of the {count} nodes of this job it sees "
                    f"nothing of number {', '.join(missing)}",
                    where=str(self.directory),
                    remedy="keep runs on a file system that all nodes share: --runs-dir DIR (or PRIMUS_RUNS)",
                )
            time.sleep(0.1)

    def announce(self, owner: Owner) -> None:
        """On node 0: the attempt that it has made."""
        write_atomically(self.directory / "owner.json", json.dumps(asdict(owner)))

    def owner(self) -> Owner | None:
        found = _read(self.directory / "owner.json")
        return Owner(**found) if found else None

    def beat(self, rank: int, count: int) -> None:
        with suppress(OSError):
            (self.directory / f"beat-{rank}").write_text(str(count), encoding="ascii")

    def beats(self, count: int) -> list[str]:
        found = []
        for rank in range(count):
            try:
                found.append((self.directory / f"beat-{rank}").read_text(encoding="ascii"))
            except (OSError, ValueError):
                found.append("")
        return found

    def end(self, rank: int, ending: Ending) -> None:
        with suppress(OSError):
            write_atomically(self.directory / f"ended-{rank}.json", json.dumps(asdict(ending)))

    def endings(self, count: int) -> dict[int, Ending]:
        """Of the nodes that came to an end by themselves."""
        read = {rank: _read(self.directory / f"ended-{rank}.json") for rank in range(count)}
        return {rank: Ending(**found) for rank, found in read.items() if found}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found


def active(run: Path) -> Sequence[JobDirectory]:
    """Jobs of the run that a batch system has been given and of which the record does not say that they have ended."""
    return [job for job in JobDirectory.all(run) if job.id and not (job.record() or [{}])[-1].get("final")]
