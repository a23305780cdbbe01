"""The agent on torchrun's elastic agent: rendezvous, ranks, restarts."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import cast

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing.api import LogsDest, LogsSpecs
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from primus.runtime.agent import GRACE_SECONDS, Control, Reporter, Task
from primus.runtime.processes import RETRYABLE

MONITOR_SECONDS = 0.1
RENDEZVOUS_SECONDS = 600


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


class Agent(LocalElasticAgent):
    """Tells failures that a restart can mend from others, and does not restart a run that was asked to stop."""

    def __init__(self, spec: WorkerSpec, logs: WorkerLogs, control: Control, reporter: Reporter) -> None:
        super().__init__(spec, logs, exit_barrier_timeout=60)
        self.control, self.reporter = control, reporter
        control.pids = self._pids

    def _pids(self) -> list[int]:
        return list(self._pcontext.pids().values()) if self._pcontext else []

    def _rendezvous(self, worker_group: WorkerGroup) -> None:
        # Ranks find each other in one store for all starts, whose keys torch does not put apart (pytorch#135712): one
        # that comes first would read where the others listened before they were started again. So a store a start.
        handler = cast("DynamicRendezvousHandler", worker_group.spec.rdzv_handler)
        handler._shared_tcp_store_server = handler._bootstrap_store_info = None
        super()._rendezvous(worker_group)

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, int]:
        self.reporter.starting(min(worker.global_rank for worker in worker_group.workers))
        ids: dict[int, int] = super()._start_workers(worker_group)
        # Starting them has put torch's own handlers in place, which would end the ranks 30 seconds after SIGTERM.
        self.control.install()
        if self.control.stopping:
            os.kill(os.getpid(), signal.SIGTERM)
        return ids

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result: RunResult = super()._monitor_workers(worker_group)
        if result.is_failed():
            codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
            if self.reporter.failed(codes, self.control):
                self._remaining_restarts = 0
            elif self._remaining_restarts > 0:
                self.reporter.restarting(self._remaining_restarts - 1)
        return result

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        self._shutdown(signal.SIGTERM, timeout=GRACE_SECONDS)


def run(task: Task, control: Control, reporter: Reporter) -> int:
    """Run this node's ranks to their end. Returns 0 when all of them ended well."""
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGQUIT"
    alone = task.nnodes == 1
    parameters = RendezvousParameters(
        backend="c10d",
        endpoint="localhost:0" if alone else task.rdzv,
        run_id=task.run_id,
        min_nodes=task.nnodes,
        max_nodes=task.nnodes,
        local_addr="localhost" if alone else None,
        timeout=RENDEZVOUS_SECONDS,
        is_host=str(task.node_rank == 0),
    )
    program, *arguments = task.worker
    spec = WorkerSpec(
        role="rank",
        local_world_size=task.nproc,
        entrypoint=program,
        args=tuple(arguments),
        rdzv_handler=get_rendezvous_handler(parameters),
        max_restarts=task.max_restarts,
        monitor_interval=MONITOR_SECONDS,
        local_addr=parameters.local_addr,
    )
    agent = Agent(spec, WorkerLogs(task.attempt / "logs", task), control, reporter)
    try:
        result = agent.run()
    finally:
        spec.rdzv_handler.shutdown()
    return RETRYABLE if result.is_failed() else 0
