"""A training run from its plan to its last screen: lock, attempt, agent, outcome. One process a node, whoever started
it: a person (``direct``) or the job of a batch system, whose nodes find each other in the job's directory."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from primus.backends import registry
from primus.checkpoints.store import complete, newest_intact, verify
from primus.errors import PrimusError, RunDirectoryError
from primus.events import units
from primus.launch.direct import Command
from primus.plan.diff import differences
from primus.plan.plan import Plan
from primus.runtime import monitoring
from primus.runtime.exchange.moving import settle
from primus.runtime.failure import screen
from primus.runtime.job import Job
from primus.runtime.lock import STALE_SECONDS, Owner, RunLock, await_attempt
from primus.runtime.meeting import FirstNode, check_meeting
from primus.runtime.outcome import Outcome
from primus.runtime.run_directory import Attempt
from primus.runtime.supervise import Interrupts, Supervisor, environment

RENDEZVOUS_SECONDS = 600.0
RESOLVE_SECONDS = (5.0, 60.0)
"""How long a node's name may take to be known: one that a person gave, one that a batch system makes with its nodes."""


@dataclass
class Gang:
    """The nodes of a batch system's job, as ``train`` needs them. announce: tells the others of node 0's attempt;
    owner: waits for that on another node, None when node 0 has ended without one; interrupts: installed already;
    outcome: how this node's share ended, once it has."""

    announce: Callable[[Owner], None]
    owner: Callable[[], Owner | None]
    interrupts: Interrupts
    outcome: Outcome | None = None


def train(job: Job, gang: Gang | None = None) -> int:
    """Run `job` on this node to its end, or say that it is complete. Returns the exit code: 0 done, 1 failed,
    128 + n stopped by signal n, also when it came to another node."""
    job, python = job.ready()
    if job.place.node_rank:
        return _join(job, python, gang)
    with _claimed(job, gang) as lock:
        settle(job.directory.path)  # else a conversion that was killed could hide the newest checkpoint
        job = job.continued()
        if is_complete(job):
            return 0
        check_meeting(job.place, RESOLVE_SECONDS[bool(gang)])
        attempt = job.directory.begin(job.plan, ["primus-cli", *job.argv])
        lock.announce(attempt.number, job.place.nnodes, job.place.rdzv)
        if gang:
            gang.announce(lock.owner)
        return _supervise(job, attempt, job.command(python, attempt, lock.owner.token), lock.beat, gang)


@contextmanager
def _claimed(job: Job, gang: Gang | None) -> Iterator[RunLock]:
    """The run directory's lock."""
    with ExitStack() as stack:
        yield _patiently(lambda: stack.enter_context(job.directory.claim(say, job.remove_leftovers)), gang)


def _patiently(take: Callable[[], RunLock], gang: Gang | None) -> RunLock:
    """A lock. A job that was queued again may find what a dead node left: that is waited out."""
    until = time.monotonic() + (STALE_SECONDS + 5 if gang else 0)
    while True:
        try:
            return take()
        except RunDirectoryError:
            if time.monotonic() > until or (gang and gang.interrupts.count):
                raise
            time.sleep(1.0)


def _join(job: Job, python: str, gang: Gang | None) -> int:
    """A node other than the first: find the attempt that node 0 made and run this node's share of it."""
    job.remove_leftovers()  # node 0 waits for them to end before it makes one
    if gang:
        found = gang.owner()
        if found is None:
            return 0
        owner, job = found, replace(job, place=replace(job.place, rdzv=found.rdzv))
        check_meeting(job.place, RESOLVE_SECONDS[True])
    elif is_complete(job):
        return 0
    else:
        check_meeting(job.place, RESOLVE_SECONDS[False])
        owner = await_attempt(job.directory.path, job.place.nnodes, RENDEZVOUS_SECONDS, say)
    attempt = job.directory.attempt(owner.attempt)
    first = Plan.load(attempt.plan)
    if unlike := differences(first, job.plan):
        raise RunDirectoryError(
            "the experiment of this node is not the one of node 0: " + "; ".join(map(str, unlike[:5])),
            where=str(attempt.plan),
            remedy="give every node the same file and overrides",
        )
    job = replace(job, plan=first)
    first_node = FirstNode(job.directory.path, owner.token)
    return _supervise(job, attempt, job.command(python, attempt, owner.token), first_node.check, gang)


def is_complete(job: Job) -> bool:
    """Whether there is nothing left to train; says so, and has trackers given what they lack."""
    experiment = job.plan.experiment
    if experiment.checkpoint.resume == "never":
        if all(verify(info) for info in complete(job.directory.path)):
            return False  # nothing that could be continued
        raise RunDirectoryError(
            "this run has checkpoints, and checkpoint.resume=never would train over them",
            where=str(job.directory.path),
            remedy="start another run (name=OTHER), or continue with checkpoint.resume=auto",
        )
    newest, _ = newest_intact(job.directory.path)
    if newest is None or newest.step < experiment.train.steps:
        return False
    tell(
        f"{experiment.name} is complete: {newest.step:,} of {experiment.train.steps:,} steps, in {job.directory.path}\n"
        f"  look      {job.look('show')}\n"
        f"  go on     the same command with train.steps={2 * newest.step}"
    )
    if job.place.node_rank == 0:
        monitoring.send_rest(job.directory, say)
    return True


def _supervise(job: Job, attempt: Attempt, command: Command, beat: Callable[[], None], gang: Gang | None) -> int:
    node, topology = job.place.node_rank, job.plan.topology
    devices = topology.nproc_per_node
    if registry.get(job.plan.experiment.backend).processes == "per_node":
        ranks = f"1 process with {units.plural(devices, 'device')}"
    else:
        ranks = "1 process" if devices == 1 else f"{devices} processes"
    where = f" as node {node} of {topology.nnodes}" if topology.nnodes > 1 else ""
    tell(f"starting {ranks}{where}: attempt {attempt.number} in {job.directory.path}")
    monitor = monitoring.prepare(job.plan) if node == 0 else ""
    lock = _patiently(lambda: attempt.claim(node), gang)

    def beats() -> None:
        beat()
        lock.beat()

    try:
        supervisor = Supervisor(job.plan, attempt, beats, node, monitor)
        with gang.interrupts if gang else Interrupts() as interrupts:
            outcome = supervisor.run(command, environment(command.argv[0]), interrupts)
    finally:
        lock.release()
    if gang:
        gang.outcome = outcome
    report = _report(job.directory.path) if node == 0 else None
    return _finish(job, attempt, outcome, report)


def _finish(job: Job, attempt: Attempt, outcome: Outcome, report: Path | None) -> int:
    """The last screen and the exit code."""
    if outcome.reason == "failed":
        width = shutil.get_terminal_size((100, 24)).columns
        tell(
            "\n" + screen(outcome, attempt.logs, job.look("logs"), job.again, width).rstrip(),
            sys.stderr,
        )
        return 1
    if outcome.reason == "complete":
        lines = [f"complete: {outcome.step:,} steps in {job.directory.path}"]
        code = 0
    else:
        lines = [f"stopped after step {outcome.step:,}", f"  continue  {job.again}"]
        code = 128 + (outcome.signal or signal.SIGTERM)
    if report is not None:
        lines.append(f"  report    {report}")
    if job.place.node_rank == 0:
        lines.append(f"  look      {job.look('show')}")
    tell("\n".join(lines))
    return code


def _report(run_directory: Path) -> Path | None:
    """report.html; what goes wrong with it must not hide how the run ended."""
    from primus.events.report import write_report

    try:
        return write_report(run_directory)
    except (OSError, PrimusError) as error:
        say(f"report.html was not written: {error}")
        return None


def say(text: str) -> None:
    tell(f"primus-cli: {text}", sys.stderr)


def tell(text: str, stream: TextIO | None = None) -> None:
    """Print a line. A reader that has gone away (a closed pipe or terminal) must not end a run."""
    stream = stream or sys.stdout
    try:
        stream.write(f"{text}\n")
        stream.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
