"""The agent without torch: for backends whose processes find each other by themselves.

Ranks get the same variables as under torchrun; MASTER_ADDR and MASTER_PORT are ``--rdzv``, or a free port of this
machine.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from primus.runtime.agents.agent import GRACE_SECONDS, Control, Reporter, Task
from primus.runtime.agents.starts import Starts
from primus.runtime.processes import RETRYABLE, end_all, free_port

MONITOR_SECONDS = 0.1


class Ranks:
    """The processes of this node, started and ended together."""

    def __init__(self, task: Task, start: int) -> None:
        host, _, port = task.rdzv.rpartition(":") if task.nnodes > 1 else ("127.0.0.1", "", str(free_port()))
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        for local in range(task.nproc):
            rank = task.node_rank * task.nproc + local
            variables = {
                "RANK": rank,
                "LOCAL_RANK": local,
                "WORLD_SIZE": task.nnodes * task.nproc,
                "LOCAL_WORLD_SIZE": task.nproc,
                "GROUP_RANK": task.node_rank,
                "MASTER_ADDR": host.strip("[]"),
                "MASTER_PORT": port,
                "TORCHELASTIC_RESTART_COUNT": start,
            }
            environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
            self.children[rank] = subprocess.Popen(task.worker, env=environment, start_new_session=True)

    def pids(self) -> dict[int, int]:
        return {rank: child.pid for rank, child in self.children.items() if child.poll() is None}

    def wait(self, superseded: Callable[[], bool]) -> dict[int, int] | None:
        """Until all ended well, or one did not, and then until none is left. Returns the exit status of those that
        failed by themselves, rank by rank; None when another node has begun a later start."""
        while True:
            codes = {rank: child.poll() for rank, child in self.children.items()}
            if any(codes.values()):
                killed = end_all(self.children, GRACE_SECONDS)
                ended = {rank: child.returncode for rank, child in self.children.items() if rank not in killed}
                return {rank: code for rank, code in ended.items() if code}
            if all(code == 0 for code in codes.values()):
                return {}
            if superseded():
                end_all(self.children, GRACE_SECONDS)
                return None
            time.sleep(MONITOR_SECONDS)


def run(task: Task, control: Control, reporter: Reporter) -> int:
    """Run this node's ranks to their end. Returns 0 when all of them ended well."""
    starts = Starts(task)
    while True:
        control.between = True
        start = starts.meet()
        control.between = False
        reporter.starting(start, task.node_rank * task.nproc)
        ranks = Ranks(task, start)
        control.pids = ranks.pids
        if control.stopping:  # asked between the ranks' start and this line
            os.kill(os.getpid(), signal.SIGTERM)
        failed = ranks.wait(starts.superseded)
        if failed is None:
            continue
        if not failed:
            return 0
        if not reporter.again(failed, control):
            return RETRYABLE
