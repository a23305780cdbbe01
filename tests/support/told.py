"""Runs that were never trained but told by their event files, and what the monitor makes of them."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from command_line import TRIAL, wait_for

from primus.config.load import load
from primus.events.bus import Bus
from primus.events.types import CheckpointSaved, EvalDone, Event, RunEnded, RunStarted, StepDone
from primus.plan.plan import Plan
from primus.plan.planner import make_plan
from primus.runtime import monitoring as launcher
from primus.runtime.monitoring import Monitoring
from primus.runtime.run_directory import Attempt, RunDirectory

LOOK = Path(__file__).with_name("look.py")


def look(python: str, what: str, where: str) -> Any:
    done = subprocess.run([python, "-P", str(LOOK), what, where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def wandb_records(python: str, file: Path) -> list[dict[str, Any]]:
    """A ``.wandb`` file's records, by W&B's own reader."""
    command = [str(Path(python).with_name("wandb")), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def planned(directory: Path, *overrides: str) -> Plan:
    """A plan whose run lies in ``directory/runs/trial``."""
    file = directory / "trial.yaml"
    file.write_text(TRIAL.format(name="trial").replace("backend: counting\n", ""), encoding="utf-8")
    resolved = load(file, ("train.steps=9", *overrides), {})
    return make_plan(resolved, nnodes=1, nproc=None, run_directory=directory / "runs" / "trial")


def begin(plan: Plan) -> Attempt:
    directory = RunDirectory(Path(plan.run_directory))
    directory.path.mkdir(parents=True, exist_ok=True)
    return directory.begin(plan, ["primus-cli", "train"])


def started(attempt: int, resumed_from: int | None = None) -> RunStarted:
    return RunStarted(
        name="trial", attempt=attempt, world_size=1, device="cpu", parameters=7, steps=9, resumed_from=resumed_from
    )


def step(number: int, loss: float = 1.0, **more: Any) -> StepDone:
    values: dict[str, Any] = {
        "grad_norm": 0.5, "lr": 1e-3, "tokens": 512, "seconds": 0.25, "memory_bytes": 1 << 30, "mfu": 0.4,
        "auxiliary": {"balance": 0.125},
    }  # fmt: skip
    return StepDone(step=number, loss=loss, **{**values, **more})


def evaluated(number: int, loss: float) -> EvalDone:
    return EvalDone(step=number, loss=loss, tokens=100, seconds=0.5)


def saved(number: int) -> CheckpointSaved:
    return CheckpointSaved(step=number, path="x", bytes=3 << 30, seconds=2.0, blocked_seconds=0.125)


def ended(reason: str, number: int) -> RunEnded:
    return RunEnded(reason=reason, step=number)


def tell(attempt: Attempt, *events: Event, writer: str = "rank0") -> None:
    with Bus(attempt.directory, writer) as bus:
        for event in events:
            bus.emit(event)


def notices(attempt: Attempt) -> list[str]:
    """What people are told of the monitor."""
    lines = [
        json.loads(line)
        for file in sorted(attempt.directory.glob("events-*.jsonl"))
        for line in file.read_text(encoding="utf-8").splitlines()
    ]
    return [line["message"] for line in lines if line["event"] == "notice"]


@contextmanager
def monitored(python: str, attempt: Attempt, *, ready: int = 0) -> Iterator[Monitoring]:
    """The monitor of an attempt, once it has given `ready` notices; at the end it is given its time to finish."""
    with patch.object(launcher, "PATIENCE_SECONDS", 60.0):  # it yields to whatever else this machine does
        monitoring = Monitoring(python, attempt)
    try:
        wait_for(lambda: len(notices(attempt)) >= ready, 120, what=f"{ready} notices in {notices(attempt)}")
        yield monitoring
        monitoring.finish()
    finally:
        monitoring.close()
