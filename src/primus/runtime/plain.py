"""The agent without torch: for backends whose processes find each other by themselves.

Ranks get the same variables as under torchrun; MASTER_ADDR and MASTER_PORT are ``--rdzv``, or a free port of this
machine.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time

from primus.runtime.agent import GRACE_SECONDS, Control, Reporter, Task
from primus.runtime.processes import RETRYABLE

MONITOR_SECONDS = 0.1


class Ranks:
    """The processes of this node, started and ended together."""

    def __init__(self, task: Task, restart: int) -> None:
        host, _, port = task.rdzv.rpartition(":") if task.nnodes > 1 else ("127.0.0.1", "", str(_free_port()))
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        for local in range(task.nproc):
            rank = task.node_rank * task.nproc + local
            variables = {
                "RANK": rank,
                "LOCAL_RANK": local,
                "WORLD_SIZE": task.nnodes * task.nproc,
                "LOCAL_WORLD_SIZE": task.nproc,
                "GROUP_RANK": task.node_rank,
                "MASTER_ADDR": host,
                "MASTER_PORT": port,
                "TORCHELASTIC_RESTART_COUNT": restart,
            }
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            self.children[rank] = subprocess.Popen(task.worker, env=environment, start_new_session=True)

    def pids(self) -> list[int]:
        return [child.pid for child in self.children.values() if child.poll() is None]

    def wait(self) -> dict[int, int]:
        """Until all ended well, or one did not. Returns the exit status of those that failed, rank by rank."""
        while True:
            codes = {rank: child.poll() for rank, child in self.children.items()}
            failed = {rank: code for rank, code in codes.items() if code}
            if failed or all(code == 0 for code in codes.values()):
                return failed
            time.sleep(MONITOR_SECONDS)

    def end(self) -> None:
        for number, patience in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
            until = time.monotonic() + patience
            for pid in self.pids():
                os.kill(pid, number)
            while self.pids() and time.monotonic() < until:
                time.sleep(MONITOR_SECONDS)


def run(task: Task, control: Control, reporter: Reporter) -> int:
    """Run this node's ranks to their end. Returns 0 when all of them ended well."""
    for restart in range(task.max_restarts + 1):
        reporter.starting(task.node_rank * task.nproc)
        ranks = Ranks(task, restart)
        control.pids = ranks.pids
        if control.stopping:  # asked between the ranks' start and this line
            os.kill(os.getpid(), signal.SIGTERM)
        failed = ranks.wait()
        if not failed:
            return 0
        hopeless = reporter.failed(failed, control)
        ranks.end()
        if hopeless or control.stopping or restart == task.max_restarts:
            break
        reporter.restarting(task.max_restarts - restart - 1)
    return RETRYABLE


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
