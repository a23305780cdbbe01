"""The batch step of a Slurm job, on its first node: ``python -P -m primus.runtime.slurm.batch JOB_DIRECTORY SRUN ...``.

It runs one job step, a launcher on each node, and looks after it: it passes on the wish to stop before a time limit,
notices nodes that fail, and queues the job again when that was not the run's own doing.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from primus.checkpoints.store import newest_intact
from primus.config.report import show
from primus.errors import LaunchError, PrimusError
from primus.launch import slurm_client
from primus.launch.slurm import Slurm
from primus.plan.planner import replan
from primus.runtime.jobs import JobDirectory, Start
from primus.runtime.processes import node_name
from primus.runtime.run_directory import write_atomically
from primus.runtime.slurm.again import FRUITLESS, Decision, Facts, decide, exclude, excluded, hasten
from primus.runtime.training import say

POLL_SECONDS = 0.1
LOOK_SECONDS = 5.0
"""Between looks at the nodes."""
HASTEN_SECONDS = 1.0
"""Between settings of the next start's time, while processes end: it must not have passed when the last is gone."""
SILENT_SECONDS = 60.0
"""A node whose launcher has not been heard of for so long, while others are, is lost."""
RESERVE_SECONDS = 15
"""Before the time limit, the job is queued again even if the last save is not done."""


class Batch:
    """One start of the job."""

    def __init__(self, job: JobDirectory, step: Sequence[str]) -> None:
        self.job, self.step = job, tuple(step)
        self.number = os.environ["SLURM_JOB_ID"]
        self.restarts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        # --export has chosen this process's environment; the job steps get the same, ours in it included
        os.environ.pop("SLURM_EXPORT_ENV", None)
        self.place = job.places().slurm or Slurm()
        self.run_directory = job.path.parent.parent
        self.start: Start = job.start(self.restarts)
        self.names = slurm_client.hostnames(os.environ["SLURM_JOB_NODELIST"])
        self.asked = ""
        self.deadline = 0.0  # of the time limit; a drain has none: the job of a node that drains may run on
        self.lost: dict[str, str] = {}
        self.signalled = False
        self._heard: list[tuple[str, float]] = [("", 0.0)] * len(self.names)
        self._looked = time.monotonic()
        signal.signal(signal.SIGUSR1, self._time_is_short)
        signal.signal(signal.SIGTERM, self._end)

    def _time_is_short(self, number: int, frame: FrameType | None) -> None:
        self._ask("the time limit was near")
        self.deadline = time.monotonic() + max(5, self.place.grace - RESERVE_SECONDS)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.signalled = True  # Slurm has told the job step too

    def _ask(self, reason: str) -> None:
        self.asked = self.asked or reason

    def run(self) -> int:
        """Returns the exit code of the job."""
        if not self.job.id:
            self.job.accept(self.number)
        step_before = self._step()
        names = self._nodes_used()
        self.job.note("started", job=self.number, start=self.restarts, nodes=names, step=step_before)
        words = [*self.step[:1], f"--nodes={len(names)}", *self.step[1:]]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        status = self._watch(process, names)
        decision = self._decide(status, names)
        return self._act(decision, step_before)

    def _nodes_used(self) -> list[str]:
        """The nodes on which the run goes on: with fewer than it was planned for, as many as it can be split over."""
        planned = self.start.planned(self.job)
        if len(self.names) == planned.topology.nnodes:
            return self.names
        problem: PrimusError | None = None
        for count in range(len(self.names), max(1, self.place.min_nodes) - 1, -1):
            try:
                plan = replan(planned, nnodes=count)
            except PrimusError as error:
                problem = problem or error
                continue
            self.start.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self.start.plan, plan.to_json())
            say(f"the job has {len(self.names)} nodes; the run goes on with {count}")
            return self.names[:count]
        assert problem is not None
        raise problem

    def _watch(self, process: subprocess.Popen[bytes], names: list[str]) -> int:
        """Until the job step has ended. Returns srun's exit status."""
        told = False
        while (code := process.poll()) is None:
            now = time.monotonic()
            if now - self._looked >= LOOK_SECONDS and not self.signalled:
                self._look(names, now - self._looked)
                self._looked = time.monotonic()
            if self.signalled and now - self._looked >= HASTEN_SECONDS:
                # Slurm has taken the job, for a dead node perhaps: ranks that wait for it may outlive this process
                hasten(self.number, self.restarts, self._avoided())
                self._looked = time.monotonic()
            if self.asked and not told:
                told = True
                say(f"{self.asked}: the run saves, and the job is queued again")
                process.send_signal(signal.SIGINT)
            if self.lost or (self.deadline and now > self.deadline):
                process.terminate()  # srun ends the step at once
                with suppress(subprocess.TimeoutExpired):
                    process.wait(30)
                process.kill()
            time.sleep(POLL_SECONDS)
        return code if code >= 0 else 128 - code

    def _look(self, names: list[str], since: float) -> None:
        """Nodes that were taken out, and nodes that have fallen silent."""
        try:
            drained = {node.name: node for node in slurm_client.nodes(",".join(names)) if node.bad}
        except LaunchError:
            drained = {}  # slurmctld is away: jobs run on without it
        for node in drained.values():
            if "DRAIN" in node.state and node.name not in self.lost:
                self._ask(f"{node.name} was drained: {node.reason or node.state}")
                self._learn({node.name: f"drained: {node.reason or node.state}"})
        # capped: while the file system or this process stood still, nobody could be heard
        since = min(since, 2 * LOOK_SECONDS)
        beats = self.start.beats(len(names))
        moved = [beat != self._heard[rank][0] for rank, beat in enumerate(beats)]
        for rank, beat in enumerate(beats):
            silent = 0.0 if moved[rank] or not beat or not any(moved) else self._heard[rank][1] + since
            self._heard[rank] = (beat, silent)
            if silent > SILENT_SECONDS and rank not in self.start.endings(len(names)):
                self.lost[names[rank]] = f"nothing was heard of it for {silent:.0f} s"

    def _decide(self, status: int, names: list[str]) -> Decision:
        endings = self.start.endings(len(names))
        codes = {rank: ending.code for rank, ending in endings.items()}
        found = None
        with suppress(LaunchError):
            found = slurm_client.job(self.number)
        restarted = found is not None and found.restarts > self.restarts
        ours = codes.get(0) == 0 or restarted or (found is not None and found.state == "CANCELLED")
        if status and not ours and not self.lost:
            self.lost |= self._unreachable([name for rank, name in enumerate(names) if rank not in endings])
            with suppress(LaunchError):
                found = slurm_client.job(self.number)  # Slurm may have found out meanwhile
                restarted = found is not None and found.restarts > self.restarts
        preempted = found.preempted if found else False
        # while its processes end, a job's state says no more than that
        ended = "CANCELLED" if self.signalled and not restarted and not preempted else ""
        return decide(
            Facts(
                codes=codes,
                broken=any(ending.broken for ending in endings.values()),
                asked=self.asked,
                lost=self.lost,
                state=ended or (found.state if found else ""),
                restarted=restarted,
                preempted=preempted,
                status=status,
            )
        )

    @staticmethod
    def _unreachable(names: list[str]) -> dict[str, str]:
        with ThreadPoolExecutor(16) as pool:
            answered = dict(zip(names, pool.map(slurm_client.answers, names), strict=True))
        return {name: "it does not answer" for name, there in answered.items() if not there}

    def _act(self, decision: Decision, step_before: int) -> int:
        what, reason = decision.what, decision.reason
        step = self._step()
        if what == "again" and self.place.has("--no-requeue"):
            what, reason = "failed", f"{reason}; --no-requeue keeps it from being queued again"
        elif what == "again" and self._fruitless(step):
            what, reason = "failed", f"{reason}; and {FRUITLESS} starts have brought no newer checkpoint"
        self.job.note(what, reason=reason, step=step, final=what in ("done", "failed", "stopped"))
        say(f"the job is {'queued again' if what in ('again', 'left') else what}: {reason}; step {step:,} is saved")
        self._learn(self.lost)
        if what == "left":
            hasten(self.number, self.restarts, self._avoided())
        elif what == "again":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it comes now
            slurm_client.requeue(self.number)
            hasten(self.number, self.restarts, self._avoided())
        return {"done": 0, "failed": 1}.get(what, 143)

    def _learn(self, bad: dict[str, str]) -> None:
        """Avoid these nodes from now on, if enough others are left."""
        if not bad:
            return
        try:
            found = slurm_client.job(self.number)
            left = slurm_client.usable_nodes(found.partition) if found else set()
        except LaunchError:
            left = set()
        if not exclude(self.run_directory, bad, left, self.place.min_nodes or self.place.nodes):
            say(f"without {', '.join(bad)} too few nodes would be left: it is not avoided")
            return
        for node, reason in bad.items():
            self.job.note("excluded", node=node, reason=reason)

    def _avoided(self) -> str:
        return ",".join(entry.node for entry in excluded(self.run_directory))

    def _fruitless(self, step: int) -> bool:
        """Whether the last FRUITLESS starts, this one included, began where the run still is."""
        began = [entry["step"] for entry in self.job.record() if entry["event"] == "started"]
        return len(began) >= FRUITLESS and all(before >= step for before in began[-FRUITLESS:])

    def _step(self) -> int:
        newest, _ = newest_intact(self.run_directory)
        return newest.step if newest else 0


def main() -> NoReturn:
    job = JobDirectory(Path(sys.argv[1]))
    try:
        job.require(node_name())
        sys.exit(Batch(job, sys.argv[2:]).run())
    except PrimusError as error:
        show(error)
        job.note("failed", reason=str(error), final=True)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
