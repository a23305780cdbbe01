"""What the tests of Slurm share: submitting a run, and reading what became of it."""

from __future__ import annotations

import re
from pathlib import Path

from command_line import Cli

from primus.checkpoints import store
from primus.runtime.jobs import JobDirectory


def train(*more: str) -> list[str]:
    return ["--", "train", "pretrain", "--config", "trial.yaml", *more]


def run_of(trial: Path) -> Path:
    return trial.parent / "runs" / "trial"


def submit(cli: Cli, *words: str, **variables: str) -> int:
    """Queue a run; the job's number."""
    done = cli("slurm", *words, **variables)
    assert done.returncode == 0, done.stderr
    found = re.search(r"queued as Slurm job (\d+)", done.stdout)
    assert found, done.stdout
    return int(found[1])


def newest(run: Path) -> int:
    info, problems = store.newest_intact(run)
    assert not problems
    return info.step if info else 0


def log(run: Path, number: int = 1) -> str:
    path = run / "jobs" / str(number) / "job.log"
    return path.read_text() if path.exists() else ""


def record(run: Path, number: int = 1) -> list[str]:
    return [entry["event"] for entry in JobDirectory(run / "jobs" / str(number)).record()]


def stepping(run: Path, attempt: int = 1) -> bool:
    events = run / "attempts" / str(attempt) / "events-rank0.jsonl"
    return events.exists() and "step_done" in events.read_text()
