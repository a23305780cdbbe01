"""Real worker processes for tests: a gang of ranks that runs one plan after another, so that starting (seconds of
imports) is paid once for many cases.

As a script it is one rank: ``gang.py SPEC.json``, with RANK and WORLD_SIZE in the environment.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from primus.plan.plan import Plan

SOURCES = Path(__file__).parents[2] / "src"


@dataclass(frozen=True)
class Case:
    """One run. stop: (rank, n): that rank is asked to stop while it makes its n-th step. before: what rank 0 does to
    files first, see ``_prepare``. file_limit: largest file in bytes that the processes may write, as on a full disk."""

    name: str
    plan: Plan
    stop: tuple[int, int] | None = None
    attempt: int = 1
    before: tuple[tuple[str, ...], ...] = ()
    file_limit: int | None = None


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


CASE_SECONDS = 240
"""A case that takes longer hangs: its ranks write their stacks to their logs, and leave."""
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

    This process holds the store that the ranks of each case meet at, as torchrun's agent does: a port that was only
    looked up could be taken by a connection of an earlier case. measured: for coverage, at a third of the speed less.
    overlay: a directory of packages that come before those of this Python. python: another one, of an engine that has
    its own environment; the variables that the first plan asks for are set in it.
    """
    from torch.distributed import TCPStore

    directory.mkdir(parents=True, exist_ok=True)
    spec = directory / "spec.json"
    stores = [TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in cases]
    entries = [
        {**vars(case), "plan": case.plan.to_json(), "port": store.port}
        for case, store in zip(cases, stores, strict=True)
    ]
    spec.write_text(json.dumps(entries), encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if measured or not name.startswith("COVERAGE_")}
    variables |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    processes = []
    for rank in range(world):
        with (directory / f"rank-{rank}.log").open("w", encoding="utf-8") as log:
            processes.append(
                subprocess.Popen(
                    [python, __file__, str(spec)],
                    env={
                        **variables,
                        **environment(rank, world, overlay=overlay),
                        "TORCHELASTIC_USE_AGENT_STORE": "True",
                        **({} if python == sys.executable else cases[0].plan.env),
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        _wait(processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return {case.name: _collect(directory, case.name, world) for case in cases}


def _wait(processes: list[subprocess.Popen[bytes]]) -> None:
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


def _run_case(entry: dict[str, Any]) -> dict[str, Any]:
    from primus.backends import registry
    from primus.backends.base import Session
    from primus.events.types import Event

    os.environ["MASTER_PORT"] = str(entry["port"])
    plan = Plan.from_json(entry["plan"])
    rank = int(os.environ["RANK"])
    run_directory = Path(plan.run_directory)
    attempt_directory = run_directory / "attempts" / str(entry["attempt"])
    attempt_directory.mkdir(parents=True, exist_ok=True)
    events: list[dict[str, Any]] = []
    stop = entry["stop"]
    steps = [0]

    def emit(event: Event) -> None:
        events.append(event.to_record())

    def stop_requested() -> bool:
        """Asked once a step, before the update."""
        steps[0] += 1
        return stop is not None and rank == stop[0] and steps[0] >= stop[1]

    session = Session(
        rank=rank,
        local_rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        run_directory=run_directory,
        attempt_directory=attempt_directory,
        attempt=entry["attempt"],
        emit=emit,
        stop_requested=stop_requested,
    )
    result, error = None, ""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        if rank == 0:
            for action in entry["before"]:
                _prepare(*action)
        if entry["file_limit"]:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (entry["file_limit"], unlimited[1]))
        result = asdict(registry.get(plan.experiment.backend).run(plan, session))
    except BaseException as failure:  # noqa: BLE001 - the test looks at it
        error = "".join(traceback.format_exception(failure))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    print(f"== {entry['name']}: {result} {error}", flush=True)  # noqa: T201 - into the log of the rank
    return {"result": result, "error": error, "events": events}


def _prepare(action: str, path: str, source: str = "") -> None:
    """copy: a run's checkpoints, from `source`; flip: one bit in the middle of a file; halve: cut a file; remove."""
    target = Path(path)
    if action == "copy":
        shutil.copytree(Path(source) / "checkpoints", target / "checkpoints")
    elif action == "flip":
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 1
        target.write_bytes(content)
    elif action == "halve":
        target.write_bytes(target.read_bytes()[: target.stat().st_size // 2])
    elif action == "remove":
        shutil.rmtree(target)
    else:
        raise ValueError(action)


def main(spec: Path) -> None:
    faulthandler.enable()
    for entry in json.loads(spec.read_text(encoding="utf-8")):
        faulthandler.dump_traceback_later(CASE_SECONDS, exit=True)
        answer = _run_case(entry)
        path = spec.parent / f"{entry['name']}-{os.environ['RANK']}.json"
        path.write_text(json.dumps(answer), encoding="utf-8")
        gc.collect()
        if "torch" in sys.modules:
            sys.modules["torch"]._dynamo.reset()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
