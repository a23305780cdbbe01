"""One node of a batch system's job: ``python -P -m primus.runtime.node JOB_DIRECTORY``, once on each.

It takes the written plan, finds the other nodes through the job's directory, and does what ``train`` does for
``direct``. Which node it is and of how many, it reads from the batch system's variables.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from primus.config.report import show
from primus.errors import LaunchError, PrimusError
from primus.events import units
from primus.launch import slurm_client
from primus.runtime.job import Job
from primus.runtime.jobs import Ending, JobDirectory, Start
from primus.runtime.lock import Owner
from primus.runtime.processes import RETRYABLE
from primus.runtime.slurm import again as slurm_again
from primus.runtime.supervise import Interrupts
from primus.runtime.training import RENDEZVOUS_SECONDS, Gang, say, train

MEET_SECONDS = 90.0
"""How long the nodes may take to see each other: shared file systems remember a directory for a minute."""
BEAT_SECONDS = 2.0
LINGER_SECONDS = 15.0
"""After a failure, how long a node waits for the others to have ended too: the first to leave ends the job step."""
LOST_SECONDS = 900.0
"""How long it stays when node 0 is lost: Slurm may need its ``SlurmdTimeout``, 300 s by default, to notice."""
LOST_AGAIN_SECONDS = 75
"""To the next start then: Slurm's daemons on the other nodes first try to reach the lost one for a minute."""
CLOCK_SECONDS = 5.0
"""Clocks that are further apart make times of different nodes misleading."""
FIRST_PORT, PORTS = 20000, 10000


class Patient(Interrupts):
    """Asked to stop, however often: batch systems send a signal more than once, and always a last one."""

    def _take(self, number: int, frame: FrameType | None) -> None:
        if not self.count:
            super()._take(number, frame)


@dataclass(frozen=True)
class Node:
    """rank: 0 to count - 1. start: how often the job was started before. job: the batch system's number of it."""

    rank: int
    count: int
    name: str
    start: int
    job: str

    @classmethod
    def of_slurm(cls, variables: Mapping[str, str]) -> Node:
        try:
            return cls(
                int(variables["SLURM_NODEID"]),
                int(variables["SLURM_STEP_NUM_NODES"]),
                variables["SLURMD_NODENAME"],
                int(variables.get("SLURM_RESTART_COUNT", "0")),
                variables["SLURM_JOB_ID"],
            )
        except (KeyError, ValueError) as error:
            raise LaunchError(
                f"this is not a task of a Slurm job: {error}", remedy="start it with primus-cli slurm ..."
            ) from error


def main() -> NoReturn:
    directory = JobDirectory(Path(sys.argv[1]))
    with Patient() as interrupts:
        try:
            node = Node.of_slurm(os.environ)
            sys.exit(run(directory, node, interrupts))
        except PrimusError as error:
            show(error)
            sys.exit(error.exit_code)


def run(directory: JobDirectory, node: Node, interrupts: Interrupts) -> int:
    """This node's share of the job. Returns the exit code of the process: of a run that was asked to stop it is 0, so
    that the batch system leaves the others the time to save too."""
    directory.require(node.name)
    start = directory.start(node.start)
    ending = Ending(node.name, 1)
    with os.fdopen(os.dup(2), "w") as voice:
        try:
            ending = _share(directory, start, node, interrupts)
        except PrimusError as error:
            if interrupts.count:  # whatever it was in the middle of was interrupted too
                ending = Ending(node.name, 128 + interrupts.first)
            else:
                show(error, voice)
    start.end(node.rank, ending)
    failed, seconds = 0 < ending.code <= 128, slurm_again.AGAIN_SECONDS
    if failed:
        _linger(start, node)
        queued = directory.script.exists()  # only such a job is queued again
        if queued and node.rank and _outlast(start, interrupts):
            seconds = LOST_AGAIN_SECONDS
    if interrupts.count:
        slurm_again.hasten(node.job, node.start, seconds=seconds)
    return ending.code if failed else 0


def _share(directory: JobDirectory, start: Start, node: Node, interrupts: Interrupts) -> Ending:
    threading.Thread(target=_beat, args=(start, node.rank), daemon=True).start()
    seen = start.meet(node.rank, node.name, node.count, MEET_SECONDS)
    if node.rank == 0:
        if warning := clocks(seen):
            say(warning)
        rdzv = meeting_point(node)
    else:
        _quiet(directory.path / f"node-{node.rank}.log")
        rdzv = "unknown:0"  # until node 0 says so

    def owner() -> Owner | None:
        return _owner(start, node, interrupts)

    places = directory.places()
    place = replace(places.direct, nnodes=node.count, node_rank=node.rank, rdzv=rdzv)
    job = Job(start.planned(directory), place, directory.argv(), places.container)
    gang = Gang(start.announce, owner, interrupts)
    code = train(job, gang)
    # an agent that died took its ranks with it, and those of other nodes failed for that
    broken = code == 1 and gang.outcome is not None and gang.outcome.elsewhere
    return Ending(node.name, RETRYABLE if broken else code, broken)


def _owner(start: Start, node: Node, interrupts: Interrupts) -> Owner | None:
    """Node 0's attempt; None when it has ended without one, or this node is asked to stop before there is one."""
    until = time.monotonic() + RENDEZVOUS_SECONDS
    while (found := start.owner()) is None:
        if 0 in start.endings(1) or interrupts.count:
            return None
        if time.monotonic() > until:
            raise LaunchError(f"node 0 has not started the run within {RENDEZVOUS_SECONDS:.0f} s")
        time.sleep(0.2)
    host = found.rdzv.rpartition(":")[0]
    if not resolves(host):
        raise LaunchError(
            f"node {node.name} cannot resolve '{host}', the name of the job's first node",
            remedy="its name has to be in DNS or /etc/hosts on every node",
        )
    return found


def meeting_point(node: Node) -> str:
    """``HOST:PORT`` on this node, the job's first: a name of it that resolves, and a free port that follows from the
    job's number, so that jobs on one machine do not try the same ones."""
    names = [node.name]
    with suppress(LaunchError):
        names += [found.address for found in slurm_client.nodes(node.name)]
    names.append(socket.gethostname())
    host = next((name for name in names if name and resolves(name)), "")
    if not host:
        raise LaunchError(
            f"none of this node's names resolves: {', '.join(names)}",
            remedy="one of them has to be in DNS or /etc/hosts on every node",
        )
    return f"{host}:{free_port(int(node.job))}"


def resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError):
        return False
    return True


def free_port(seed: int) -> int:
    """A port that nobody listens on, the first of those that follow from `seed`."""
    for offset in range(PORTS):
        port = FIRST_PORT + (seed * 7 + offset) % PORTS
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
    raise LaunchError(f"no port from {FIRST_PORT} to {FIRST_PORT + PORTS - 1} is free on this node")


def clocks(seen: Mapping[int, Mapping[str, Any]]) -> str:
    """A warning when the nodes' clocks are far apart; else empty. Each was compared with the file server's."""
    skews = {str(said["node"]): float(said["skew"]) for said in seen.values()}
    ahead, behind = max(skews, key=lambda name: skews[name]), min(skews, key=lambda name: skews[name])
    if (apart := skews[ahead] - skews[behind]) <= CLOCK_SECONDS:
        return ""
    said = f"the clocks of {ahead} and {behind} are {units.duration(apart)} apart"
    return f"{said}; times of events of different nodes mislead"


def _beat(start: Start, rank: int) -> None:
    count = 0
    while True:
        start.beat(rank, count := count + 1)
        time.sleep(BEAT_SECONDS)


def _linger(start: Start, node: Node) -> None:
    until = time.monotonic() + LINGER_SECONDS
    while len(start.endings(node.count)) < node.count and time.monotonic() < until:
        time.sleep(0.1)


def _outlast(start: Start, interrupts: Interrupts) -> bool:
    """If node 0 is lost, and with it the batch step, stay until the batch system takes the job from those that are
    left: nobody else can see to an early start then. Returns whether it was lost."""
    beat, until = start.beats(1), time.monotonic() + LOST_SECONDS
    while not interrupts.count and time.monotonic() < until:
        if start.beats(1) != beat or 0 in start.endings(1):
            return False
        time.sleep(0.2)
    return 0 not in start.endings(1)


def _quiet(log: Path) -> None:
    """What node 0 prints for all goes into the job's log once; the other nodes' goes to a file of their own."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for standard in (1, 2):
        os.dup2(descriptor, standard)
    os.close(descriptor)


if __name__ == "__main__":
    main()
