"""What the ``run`` verbs say about jobs of a batch system."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from primus.cli.runs import table
from primus.errors import UsageError
from primus.runtime import job_state
from primus.runtime.jobs import JobDirectory
from primus.runtime.slurm.again import excluded


def status(run: Path, otherwise: str) -> str:
    """``queued (Resources)`` while the run's job waits; else `otherwise`, what its events say."""
    job = job_state.newest(run)
    if job is None:
        return otherwise
    if job.waits:
        return f"queued ({job.reason})" if job.reason else "queued"
    return job.state if otherwise == "unknown" else otherwise


def as_dict(run: Path) -> dict[str, Any]:
    """The newest job and the nodes that the run avoids, for ``--json``."""
    job = job_state.newest(run)
    return {"job": asdict(job) if job else None, "avoided_nodes": [asdict(entry) for entry in excluded(run)]}


def print_jobs(run: Path) -> None:
    """The newest job, its starts, and the nodes that the run avoids; nothing for a run that never was a job."""
    job = job_state.newest(run)
    if job is None:
        return
    click.echo(f"\n{job}; its files are in {run / 'jobs' / str(job.number)}")
    if job.starts:
        rows = [
            [
                time.strftime("%m-%d %H:%M:%S", time.localtime(start.began)),
                _some(start.nodes),
                f"{start.step:,}",
                start.end or "-",
            ]
            for start in job.starts
        ]
        table(["JOB STARTED", "NODES", "FROM STEP", "ENDED"], rows)
    for entry in excluded(run):
        until = time.strftime("%m-%d %H:%M", time.localtime(entry.until))
        click.echo(f"avoided until {until}: {entry.node}: {entry.reason}")


def _some(nodes: tuple[str, ...]) -> str:
    return ", ".join(nodes) if len(nodes) <= 4 else f"{nodes[0]} ... {nodes[-1]} ({len(nodes)})"


def job_log(run: Path) -> Path:
    """What the run's newest job printed. Raises UsageError when there is none."""
    jobs = JobDirectory.all(run)
    if not jobs:
        raise UsageError(f"run '{run.name}' never was a job", remedy="leave out --job")
    if not jobs[-1].log.exists():
        if (place := jobs[-1].places().slurm) and place.output:
            raise UsageError(f"what the job prints is where --output says: {place.output}")
        job = job_state.newest(run)
        raise UsageError(f"the job has printed nothing yet: {job or jobs[-1].path}")
    return jobs[-1].log
