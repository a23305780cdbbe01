"""What has become of a run's jobs: what Slurm says now, and what the job's own record says when Slurm has forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from primus.errors import LaunchError
from primus.events.jobs import JobStart, starts_of
from primus.launch import slurm_client
from primus.runtime.jobs import JobDirectory


@dataclass(frozen=True)
class JobState:
    """number: K of ``jobs/K``. id: Slurm's. state: ``pending``, ``running``, ``completed``, ...; ``unknown``
    where Slurm cannot be asked. reason: why it waits, or how it ended, in Slurm's word. starts: oldest first."""

    number: int
    id: str
    state: str
    reason: str
    starts: tuple[JobStart, ...]

    @property
    def waits(self) -> bool:
        return self.state in ("pending", "requeued", "requeue_hold")

    def __str__(self) -> str:
        return f"Slurm job {self.id}: {self.state}" + (f" ({self.reason})" if self.reason else "")


_silent: list[str] = []
"""Why Slurm could not be asked in this process: a list of runs shall wait for it once."""


def newest(run: Path) -> JobState | None:
    """The state of the run's newest job that Slurm was given; None when there is none. Slurm is asked only about jobs
    whose record has no end."""
    jobs = [job for job in JobDirectory.all(run) if job.id]
    return _state(jobs[-1]) if jobs else None


def _state(job: JobDirectory) -> JobState:
    record = job.record()
    starts = tuple(starts_of(record))
    last = record[-1] if record else {}
    if last.get("final"):
        state = {"done": "completed", "failed": "failed"}.get(last["event"], "stopped")
        return JobState(job.number, job.id, state, "", starts)
    try:
        found = None if _silent else slurm_client.job(job.id)
    except LaunchError as error:
        _silent.append(str(error))
    if _silent:
        return JobState(job.number, job.id, "unknown", "Slurm cannot be asked from here", starts)
    if found is None:
        return JobState(job.number, job.id, "gone", "Slurm has forgotten it, and it wrote no end", starts)
    return JobState(job.number, job.id, found.state.lower(), found.reason, starts)
