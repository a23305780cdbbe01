"""The agent of a node whose ranks are in replica groups: a lighthouse, and an agent of its own for each group.

Groups meet before every step and need not all be there; how, is torchft's. The lighthouse tells them who is: it lives
here, as long as the run. A group's agent starts its ranks again without asking the others; one that gives up leaves the
run to them.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.machinery import PathFinder
from typing import Any

from primus.config.units import least_seconds
from primus.events.types import Notice
from primus.events.units import plural
from primus.plan.plan import Plan
from primus.runtime.agents.agent import Control, Reporter, Task
from primus.runtime.processes import GROUP, RETRYABLE, sentence

POLL_SECONDS = 0.1
END_SECONDS = 30.0
"""When one group has ended well, how long the others may take: the run is done, with or without them."""
HEARTBEAT_SECONDS = 2.0
"""A group that has not been heard of for so long is gone: the others wait for it no longer."""
TICK_SECONDS = 0.02
"""How often the lighthouse looks who is there."""

LIGHTHOUSE = "TORCHFT_LIGHTHOUSE"
"""The lighthouse's address, in a rank's environment."""


def run(task: Task, control: Control, reporter: Reporter) -> int:
    """Run this node's replica groups to their end. Returns 0 when one of them ended well."""
    plan = Plan.load(task.attempt / "plan.json")
    lighthouse = _coordination().LighthouseServer(
        bind="[::]:0",
        min_replicas=1,
        # for a group that lives and yet does not come, as a collective would
        join_timeout_ms=int(1000 * least_seconds(plan.experiment.resilience.hang_timeout) / 2),
        quorum_tick_ms=int(1000 * TICK_SECONDS),
        heartbeat_timeout_ms=int(1000 * HEARTBEAT_SECONDS),
    )
    port = lighthouse.address().rpartition(":")[2]
    groups = Groups(task, plan, f"http://localhost:{port}")
    control.pids, control.logs, control.between = groups.pids, None, False  # their agents know the ranks
    signal.signal(signal.SIGUSR2, lambda *_: groups.send(signal.SIGUSR2))
    if control.stopping:  # asked between their start and this line
        groups.send(signal.SIGTERM)
    codes = groups.wait(reporter)
    lighthouse.shutdown()
    return 0 if 0 in codes.values() else max(codes.values(), default=RETRYABLE)


class Groups:
    """The agents of this node's replica groups."""

    def __init__(self, task: Task, plan: Plan, lighthouse: str) -> None:
        self._agents: dict[int, subprocess.Popen[bytes]] = {}
        size = plan.topology.group_size
        for number in range(task.replica_groups):
            again = [sys.executable, "-P", "-m", "primus.runtime.agents.agent", *sys.argv[1:]]
            again += ["--replica-group", str(number), "--nproc", str(size), "--run-id", f"{task.run_id}-{number}"]
            own = {GROUP: str(number), LIGHTHOUSE: lighthouse}
            own |= devices(plan.experiment.hardware.device, range(number * size, (number + 1) * size), os.environ)
            self._agents[number] = subprocess.Popen(again, env={**os.environ, **own}, start_new_session=True)

    def pids(self) -> dict[int, int]:
        return {number: agent.pid for number, agent in self._agents.items() if agent.poll() is None}

    def send(self, number: signal.Signals) -> None:
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait(self, reporter: Reporter) -> dict[int, int]:
        """Until all have ended. Returns their exit codes."""
        codes: dict[int, int] = {}
        ended = 0.0
        while len(codes) < len(self._agents):
            time.sleep(POLL_SECONDS)
            if 0 in codes.values():
                ended = ended or time.monotonic()
                if time.monotonic() - ended > END_SECONDS:
                    self.send(signal.SIGKILL)  # their ranks go with them
            for number, agent in self._agents.items():
                if number in codes or agent.poll() is None:
                    continue
                codes[number] = agent.returncode
                left = len(self._agents) - len(codes)
                if agent.returncode and left and 0 not in codes.values():
                    reporter.bus.emit(
                        Notice(
                            message=f"replica group {number} is given up, {sentence('its agent', agent.returncode)}; "
                            f"{plural(left, 'other')} may go on"
                        )
                    )
        return codes


def devices(kind: str, own: range, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that show a group the devices `own`, counted among those that this node's ranks may use."""
    if kind == "cpu":
        return {}
    names = [name for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if environment.get(name)]
    if not names:
        return {"HIP_VISIBLE_DEVICES" if kind == "rocm" else "CUDA_VISIBLE_DEVICES": ",".join(map(str, own))}
    return {name: ",".join(environment[name].split(",")[own.start : own.stop]) for name in names}


def _coordination() -> Any:
    """torchft's compiled module by itself: its package would import torch, for which this process has no use."""
    package = importlib.util.find_spec("torchft")
    assert package is not None
    spec = PathFinder.find_spec("_torchft", list(package.submodule_search_locations or ()))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
