"""Real worker processes for tests: a gang of ranks that runs one plan after another. They are forked from a process
that has imported the engine, so that a session pays for that once.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import forks

from primus.plan.plan import Plan

SOURCES = Path(__file__).parents[2] / "src"
RANK = Path(__file__).with_name("rank.py")


@dataclass(frozen=True)
class Case:
    """One run. stop: (rank, n): that rank is asked to stop while it makes its n-th step. before: what rank 0 does to
    files first, see ``rank.py``. file_limit: largest file in bytes that the processes may write, as on a full disk;
    relieved: only rank 0 has that limit, until it says that it tries a save again."""

    name: str
    plan: Plan
    stop: tuple[int, int] | None = None
    attempt: int = 1
    before: tuple[tuple[str, ...], ...] = ()
    file_limit: int | None = None
    relieved: bool = False


@dataclass
class Ran:
    """What the ranks of one case did. error: text of each rank's exception, if any."""

    result: dict[str, Any] | None
    errors: list[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event"] == kind]

    @property
    def losses(self) -> dict[int, float]:
        return {event["step"]: event["loss"] for event in self.of("step_done")}

    @property
    def norms(self) -> dict[int, float]:
        return {event["step"]: event["grad_norm"] for event in self.of("step_done")}

    def ended(self) -> Ran:
        """Itself, after making sure that it ended as a run should."""
        assert not any(self.errors), "\n".join(self.errors)
        assert self.result is not None
        return self


def free_port() -> int:
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


GRACE_SECONDS = 20
"""When a rank has died, how long the others may go on before their stacks are asked for and they are ended too."""


def run_gang(
    cases: Sequence[Case],
    world: int,
    directory: Path,
    *,
    measured: bool = False,
    overlay: Path | None = None,
    python: str = sys.executable,
) -> dict[str, Ran]:
    """Run `cases` in order in `world` processes; their output is in DIRECTORY/rank-R.log.

    measured: for coverage, at a third of the speed less. overlay: a directory of packages that come before those of
    this Python. python: another one, of an engine that has its own environment. That is JAX, of which a process has as
    many devices as its first case asked for: each case has processes of its own, in DIRECTORY/CASE.
    """
    if python == sys.executable:
        return _run(cases, world, directory, python=python, overlay=overlay, measured=measured)
    ran: dict[str, Ran] = {}
    for case in cases:
        ran |= _run([case], world, directory / case.name, python=python, overlay=overlay, measured=measured)
    return ran


def _run(
    cases: Sequence[Case], world: int, directory: Path, *, python: str, overlay: Path | None, measured: bool
) -> dict[str, Ran]:
    directory.mkdir(parents=True, exist_ok=True)
    spec, plan = directory / "spec.json", cases[0].plan
    stores = [_meeting(python) for _ in cases]
    entries = [
        {**vars(case), "plan": case.plan.to_json(), "port": port} for case, (port, _) in zip(cases, stores, strict=True)
    ]
    spec.write_text(json.dumps(entries), encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if measured or not name.startswith("COVERAGE_")}
    engine = {} if python == sys.executable else plan.env
    processes: list[subprocess.Popen[bytes] | forks.Forked] = []
    for rank in range(world):
        log = directory / f"rank-{rank}.log"
        mine = {**variables, **environment(rank, world, overlay=overlay), "TORCHELASTIC_USE_AGENT_STORE": "True"}
        if measured:
            with log.open("w", encoding="utf-8") as file:
                command = [python, str(RANK), str(spec)]
                processes.append(subprocess.Popen(command, env=mine, stdout=file, stderr=subprocess.STDOUT))
        else:
            source = forks.source(plan.experiment.backend, python, mine, engine)
            processes.append(source.start(RANK, [str(spec)], {**mine, **engine}, log))
    try:
        _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {case.name: _collect(directory, case.name, world) for case in cases}


def _meeting(python: str) -> tuple[int, object]:
    """A port where the ranks of a case meet, and what has to be kept for it. torch's ranks meet at a store of this
    process, as at torchrun's agent: a port that was only looked up could be taken by a connection of an earlier case.
    JAX's first rank opens its own."""
    from torch.distributed import TCPStore

    if python != sys.executable:
        return free_port(), None
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    return store.port, store


def _wait(processes: Sequence[subprocess.Popen[bytes] | forks.Forked]) -> None:
    """Until all have ended, or some time after the first that failed."""
    failed_at = None
    while any(process.poll() is None for process in processes):
        now = time.monotonic()
        if failed_at is None and any(process.returncode for process in processes):
            failed_at = now
        if failed_at is not None and now - failed_at > GRACE_SECONDS:
            for process in processes:
                process.send_signal(signal.SIGABRT)
            time.sleep(2)  # for their stacks
            return
        time.sleep(0.05)


def environment(rank: int, world: int, port: int | None = None, overlay: Path | None = None) -> dict[str, str]:
    """Variables of a rank, on top of this process's."""
    path = os.pathsep.join(map(str, filter(None, [overlay, SOURCES])))
    extra = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
    extra |= {"OMP_NUM_THREADS": "1", "TORCHELASTIC_USE_AGENT_STORE": "False", "PYTHONPATH": path}
    if port is not None:
        extra["MASTER_PORT"] = str(port)
    return extra


def _collect(directory: Path, name: str, world: int) -> Ran:
    ran = Ran(None, [])
    for rank in range(world):
        path = directory / f"{name}-{rank}.json"
        if not path.exists():
            tail = (directory / f"rank-{rank}.log").read_text(encoding="utf-8")[-6000:]
            ran.errors.append(f"rank {rank} left no result for {name}; its log ends:\n{tail}")
            continue
        part = json.loads(path.read_text(encoding="utf-8"))
        ran.result = part["result"] if rank == 0 else ran.result
        ran.errors.append(part["error"])
        ran.events += part["events"]
    return ran
