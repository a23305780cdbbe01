"""The agent on torchrun's elastic agent, which starts and watches ranks; a rendezvous and a budget of our own."""

from __future__ import annotations

import os
import signal
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import cast

from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs, SubprocessContext
from torch.distributed.elastic.rendezvous import RendezvousHandler, RendezvousInfo, RendezvousStoreInfo

from primus.errors import LaunchError
from primus.runtime.agents.agent import GRACE_SECONDS, Control, Reporter, Task
from primus.runtime.agents.starts import MEETING_SECONDS, Starts
from primus.runtime.processes import RETRYABLE, end_all

MONITOR_SECONDS = 0.1
REACH_SECONDS = 60.0
"""How long node 0's port may take to answer, once node 0 has said that it is there."""
ENDLESS = 1 << 30
"""Restarts as far as torch's agent knows: ours counts them by a window of time."""


class WorkerLogs(LogsSpecs):
    """The ranks open their own logs (``runtime.worker``), to append over restarts; here nothing is redirected."""

    def __init__(self, directory: Path, task: Task) -> None:
        super().__init__(str(directory))
        self.directory, self.task = directory, task

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        nowhere = dict.fromkeys(envs, "")
        numbers = {local: self.task.number(int(env["RANK"])) for local, env in envs.items()}
        errors = {local: str(self.directory / f"rank-{number}.error.json") for local, number in numbers.items()}
        return LogsDest(dict(nowhere), dict(nowhere), dict(nowhere), dict(nowhere), errors)

    @property
    def root_log_dir(self) -> str:
        return str(self.directory)


class Meeting(RendezvousHandler):
    """Which start the nodes are in, and the stores by which they and their ranks find each other.

    The agents' store is node 0's, at ``--rdzv``. The ranks get another one for each start, on a free port of node 0:
    torch does not put apart what the ranks of several starts write (pytorch#135712). Its own dynamic rendezvous holds
    nodes for dead whose clocks are 15 seconds apart, may give them other ranks than ``--node-rank``, and lets one that
    comes again wait.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.starts = task, Starts(task)
        host, _, port = task.rdzv.rpartition(":") if task.nnodes > 1 else ("localhost", "", "0")
        self._address, self._port = host.strip("[]"), int(port)
        self._agents: TCPStore | None = None
        self._ranks: list[TCPStore] = []  # of all starts: to close one can take for ever

    def get_backend(self) -> str:
        return "primus"

    def get_run_id(self) -> str:
        return self.task.run_id

    @property
    def use_agent_store(self) -> bool:
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        first = self.task.node_rank == 0
        if self._agents is None and first:
            self._agents = self._store(self._port, serve=True)  # before the others come
        start = self.starts.meet()
        if self._agents is None:
            self._agents = self._reach()
        store = PrefixStore(f"{self.task.run_id}/{start}", self._agents)
        if first:
            self._ranks.append(self._store(0, serve=True))
            store.set("ranks", str(self._ranks[-1].port))
        address = RendezvousStoreInfo(self._address, int(store.get("ranks")))
        return RendezvousInfo(store, self.task.node_rank, self.task.nnodes, address)

    def _reach(self) -> TCPStore:
        """Node 0's store, which is there by now."""
        try:
            store = self._store(self._port, serve=False, seconds=REACH_SECONDS)
        except RuntimeError as error:
            raise LaunchError(
                f"node 0 cannot be reached from node {self.task.node_rank}: {str(error).splitlines()[0]}",
                where=f"--rdzv {self.task.rdzv}",
                remedy="give an address of node 0 in the network of the nodes, and a port that no firewall closes",
            ) from error
        store.set_timeout(timedelta(seconds=MEETING_SECONDS))
        return store

    def _store(self, port: int, *, serve: bool, seconds: float = MEETING_SECONDS) -> TCPStore:
        timeout = timedelta(seconds=seconds)
        return TCPStore(self._address, port, is_master=serve, timeout=timeout, wait_for_workers=False)

    def num_nodes_waiting(self) -> int:
        return int(self.starts.superseded())

    def is_closed(self) -> bool:
        return False

    def set_closed(self) -> None:
        """The launchers tell each other when a node has failed for good."""

    def shutdown(self) -> bool:
        return True


class Agent(LocalElasticAgent):
    """Tells failures that a restart can mend from others, and does not restart a run that was asked to stop."""

    def __init__(self, spec: WorkerSpec, logs: WorkerLogs, control: Control, reporter: Reporter) -> None:
        super().__init__(spec, logs, exit_barrier_timeout=60)
        self.control, self.reporter = control, reporter
        self.meeting = cast("Meeting", spec.rdzv_handler)
        control.pids = self._pids

    def _pids(self) -> dict[int, int]:
        workers, number = self._worker_group.workers, self.reporter.task.number
        running = {local: child.pid for local, child in self._children().items() if child.poll() is None}
        return {number(workers[local].global_rank): pid for local, pid in running.items()}

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        self.control.between = True
        super()._rendezvous(worker_group)
        self.control.between = False

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        start = self.meeting.starts.current
        self._remaining_restarts = ENDLESS - start  # which becomes TORCHELASTIC_RESTART_COUNT, equal on all nodes
        self.reporter.starting(start, min(worker.global_rank for worker in worker_group.workers))
        ids: dict[int, int] = super()._start_workers(worker_group)
        # Starting them has put torch's own handlers in place, which would end the ranks 30 seconds after SIGTERM.
        self.control.install()
        if self.control.stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        return ids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        ended_here: set[int] = set()
        if any(child.poll() for child in self._children().values()):
            ended_here = self._end()
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            ranks = {worker_group.workers[local].global_rank for local in ended_here}
            codes = {rank: failure.exitcode for rank, failure in result.failures.items() if rank not in ranks}
            if not self.reporter.again(codes, self.control):
                self._remaining_restarts = 0
        return result

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._end()

    def _end(self) -> set[int]:
        """End this node's ranks; returns the local ranks that did not end by themselves. torch's own way asks with
        SIGTERM, which means another thing to our ranks, and waits 30 seconds."""
        return end_all(self._children(), GRACE_SECONDS)

    def _children(self) -> dict[int, subprocess.Popen[bytes]]:
        context = cast("SubprocessContext | None", self._pcontext)
        return {local: handler.proc for local, handler in context.subprocess_handlers.items()} if context else {}


def run(task: Task, control: Control, reporter: Reporter) -> int:
    """Run this node's ranks to their end. Returns 0 when all of them ended well."""
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    program, *arguments = task.worker
    spec = WorkerSpec(
        role="rank",
        local_world_size=task.nproc,
        entrypoint=program,
        args=tuple(arguments),
        rdzv_handler=Meeting(task),
        max_restarts=ENDLESS,
        monitor_interval=MONITOR_SECONDS,
    )
    result = Agent(spec, WorkerLogs(task.attempt / "logs", task), control, reporter).run()
    return RETRYABLE if result.is_failed() else 0
