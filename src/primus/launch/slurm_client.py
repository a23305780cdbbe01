"""Slurm's own commands, called thinly; what they refuse is shown in their words. No accounting database is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from primus.errors import LaunchError

OVERRIDING = ("SBATCH_SIGNAL", "SBATCH_OPEN_MODE", "SBATCH_REQUEUE", "SBATCH_NO_REQUEUE")
"""Variables that would win over what the script says and recovery needs."""
SHIELD = ("sh", "-c", 'trap "" TERM; exec "$@"', "sh")
"""Slurm ends a job by a signal to all its processes; what tidies up then must outlive it."""
ENDED = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE",
                   "PREEMPTED"})  # fmt: skip
BAD = ("DOWN", "DRAIN", "FAIL", "ERROR", "NOT_RESPONDING")


@dataclass(frozen=True)
class SlurmJob:
    """What ``scontrol show job`` says. reason: why it waits, or how it ended. restarts: how often it was queued again.
    nodes: its node list, empty while it waits. preempted: Slurm has told it to make way."""

    number: str
    state: str
    reason: str
    restarts: int
    nodes: str
    excluded: str
    partition: str
    preempted: bool

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class SlurmNode:
    """A node. state: as Slurm spells it, ``IDLE+DRAIN``; reason: why it does not take jobs, empty otherwise."""

    name: str
    state: str
    reason: str
    address: str

    @property
    def bad(self) -> bool:
        """Whether Slurm, a health check or an administrator has taken it out."""
        return any(word in self.state for word in BAD) or self.state.endswith("*")


def require(program: str) -> None:
    """Raise LaunchError when Slurm's `program` is not on PATH."""
    if not shutil.which(program):
        raise LaunchError(
            f"Slurm is not installed here: there is no {program} on PATH",
            remedy="run this on a login node of the cluster, or load the module that brings Slurm",
        )


def call(*words: str, shielded: bool = False, seconds: float = 60.0) -> str:
    """The output of one of Slurm's commands. Raises LaunchError with its own words when it does not succeed."""
    require(words[0])
    try:
        done = subprocess.run(
            [*(SHIELD if shielded else ()), *words], capture_output=True, text=True, errors="replace", timeout=seconds,
            check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"{words[0]} did not answer within {seconds:.0f} s", remedy="is slurmctld up? `scontrol ping` says"
        ) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").replace("\n", "\n  ")
        raise LaunchError(f"{words[0]} refused:\n  {said}", remedy="the words are Slurm's")
    return done.stdout


def sbatch(script: Path) -> str:
    """Submit; returns the job's number. Raises LaunchError with what Slurm says."""
    for name in OVERRIDING:
        os.environ.pop(name, None)
    out = call("sbatch", "--parsable", str(script))
    number = out.strip().splitlines()[-1].partition(";")[0] if out.strip() else ""
    if not number.isdecimal():
        raise LaunchError(f"sbatch did not name the job; it said: {out.strip()!r}", remedy="`squeue --me` shows it")
    return number


def job(number: str) -> SlurmJob | None:
    """The job as Slurm knows it now; None when it does not (any more). Raises LaunchError if Slurm cannot be asked."""
    try:
        text = call("scontrol", "show", "job", number, seconds=20)
    except LaunchError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    fields: dict[str, str] = {}
    for line in text.splitlines()[1:]:  # the first line holds the name, which may say anything; so may these two
        if not line.lstrip().startswith(("Comment=", "Command=")):
            fields |= {name: value for name, value in re.findall(r"(\S+?)=(\S*)", line)}
    return SlurmJob(
        number=number,
        state=fields.get("JobState", ""),
        reason=_said(fields.get("Reason", "")),
        restarts=int(fields.get("Restarts", "0")),
        nodes=_said(fields.get("NodeList", "")),
        excluded=_said(fields.get("ExcNodeList", "")),
        partition=fields.get("Partition", ""),
        preempted=fields.get("PreemptTime", "None") not in ("None", "Unknown", "N/A"),
    )


def nodes(names: str) -> list[SlurmNode]:
    """The nodes of a node list. Raises LaunchError when Slurm cannot be asked."""
    found = []
    for line in call("scontrol", "-o", "show", "node", names, seconds=20).splitlines():
        fields = dict(re.findall(r"(\S+?)=(\S*)", line))
        reason = re.search(r" Reason=(.*?)(?: \[\S+@\S+\])?(?: Comment=.*)?$", line)
        said = reason[1] if reason else ""
        found.append(SlurmNode(fields.get("NodeName", ""), fields.get("State", ""), said, fields.get("NodeAddr", "")))
    return found


def hostnames(names: str) -> list[str]:
    """``n[1-2],x`` as single names, in order."""
    return call("scontrol", "show", "hostnames", names).split()


def usable_nodes(partition: str) -> set[str]:
    """Names of the partition's nodes that take jobs, now or when others have ended."""
    lines = call("sinfo", "-h", "-N", "-p", partition, "-o", "%N %T").splitlines()
    pairs = [line.split() for line in lines if len(line.split()) == 2]
    return {name for name, state in pairs if not any(word in state.upper() for word in BAD) and not state.endswith("*")}


def answers(node: str) -> bool:
    """Whether a node of the current job still starts processes."""
    words = ("srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={node}", "--mem=0", "--gres=none", "true")
    try:
        done = subprocess.run([*SHIELD, *words], capture_output=True, timeout=20, stdin=subprocess.DEVNULL, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def requeue(number: str) -> None:
    """Put the running job back into the queue; Slurm ends its processes."""
    call("scontrol", "requeue", number, shielded=True)


def update(number: str, **fields: str) -> None:
    """Change the job, e.g. ``StartTime="now+10"``."""
    call("scontrol", "update", f"JobId={number}", *(f"{name}={value}" for name, value in fields.items()), shielded=True)


def _said(value: str) -> str:
    return "" if value in ("(null)", "None") else value
