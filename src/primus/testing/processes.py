"""Real worker processes for the conformance suite, and faults at exact places in them.

As a module it is one worker: ``python -m primus.testing.processes ATTEMPT [SIGNAL STEP]`` is ``primus.runtime.worker``
whose rank 0 sends itself SIGNAL right after it has reported STEP.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from primus.backends import registry
from primus.events.types import Event, StepDone
from primus.plan.plan import Plan
from primus.runtime.environments import import_path, provide
from primus.runtime.environments.pins import this_interpreter
from primus.runtime.environments.ranks import engine_mismatches
from primus.runtime.processes import free_port


@dataclass(frozen=True)
class Fault:
    """A signal that rank 0 gets after it has reported a step."""

    signal: signal.Signals
    step: int


def run_attempt(plan: Plan, number: int, fault: Fault | None = None, timeout: float = 300.0) -> list[int]:
    """Run one attempt of `plan` in worker processes, to its end or to `fault`. Returns the exit codes by rank; when one
    rank is killed the others are killed with it. They are of this interpreter if it holds the engine, else of the
    backend's environment, which is made if there is none. Raises TimeoutError."""
    run_directory = Path(plan.run_directory)
    attempt = run_directory / "attempts" / str(number)
    (attempt / "logs").mkdir(parents=True)
    for path in (attempt / "plan.json", run_directory / "plan.json"):
        path.write_text(plan.to_json(), encoding="utf-8")
    words = [fault.signal.name, str(fault.step)] if fault else []
    python, packages = _interpreter(plan)
    command = [python, "-m", "primus.testing.processes", str(attempt), *words]
    holds_all_devices = registry.get(plan.experiment.backend).processes == "per_node"
    world_size, port = 1 if holds_all_devices else plan.topology.world_size, free_port()
    children = []
    for rank in range(world_size):
        variables = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world_size,
            "LOCAL_WORLD_SIZE": world_size,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "PYTHONPATH": packages,
            **plan.env,
        }
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        children.append(subprocess.Popen(command, env=environment))
    deadline = time.monotonic() + timeout
    try:
        while any(child.poll() is None for child in children):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"attempt {number} took more than {timeout:.0f} s; its logs are in {attempt / 'logs'}"
                )
            if any(child.poll() for child in children):
                break
            time.sleep(0.05)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
    return [child.wait() for child in children]


def _interpreter(plan: Plan) -> tuple[str, str]:
    """The one that workers run in, and its PYTHONPATH."""
    if not engine_mismatches(this_interpreter(), plan.engine):
        return sys.executable, os.pathsep.join(entry for entry in sys.path if entry)
    return provide(plan.environment), import_path()["PYTHONPATH"]


def log_of(plan: Plan, number: int, rank: int = 0) -> str:
    """The end of what a rank printed, for a failed test's message."""
    path = Path(plan.run_directory) / "attempts" / str(number) / "logs" / f"rank-{rank}.log"
    return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""


def main() -> None:
    from primus.runtime import worker

    words = sys.argv[2:]
    if words and os.environ["RANK"] == "0":
        fault = Fault(signal.Signals[words[0]], int(words[1]))

        class Faulty(worker.Emitter):
            def __call__(self, event: Event) -> None:
                super().__call__(event)
                if isinstance(event, StepDone) and event.step == fault.step:
                    os.kill(os.getpid(), fault.signal)

        worker.Emitter = Faulty  # type: ignore[misc]
    worker.main()


if __name__ == "__main__":
    main()
