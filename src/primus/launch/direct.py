"""The place ``direct``: processes on this machine and, started by hand on each, on others that share the run directory.

``render`` is pure: the same arguments give the same command, byte for byte. What it renders is the agent of this node,
which starts and watches the ranks.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from primus.errors import UsageError

DEFAULT_PORT = 29400


@dataclass(frozen=True)
class Direct:
    """The flags of ``direct``. nproc: processes on each node; None: as many as the hardware preset has devices, else 1.
    rdzv: ``HOST:PORT`` of node 0, needed with more than one node. env: set in the ranks, over the experiment's.
    inherited: names of more, secrets among them, whose values are in the caller's environment and nowhere else."""

    nproc: int | None = None
    nnodes: int = 1
    node_rank: int = 0
    rdzv: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    inherited: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.node_rank < self.nnodes:
            raise UsageError(
                f"--node-rank {self.node_rank} is not one of {self.nnodes} nodes",
                remedy=f"they count from 0 to {self.nnodes - 1}",
            )
        if self.nnodes > 1 and not self.rdzv:
            raise UsageError(
                "several nodes need a meeting point",
                remedy=f"give --rdzv HOST:PORT of node 0, e.g. node0:{DEFAULT_PORT}",
            )


@dataclass(frozen=True)
class Command:
    """A process to start: its arguments, and the variables it gets on top of the caller's environment. secrets: more of
    those, never shown. attached: it ends when its standard input does. end: what ends it at once where killing the
    process would not, for it runs elsewhere."""

    argv: tuple[str, ...]
    env: dict[str, str]
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    attached: bool = False
    end: tuple[str, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """With its variables, for a shell."""
        assignments = [f"{name}={value}" for name, value in sorted(self.env.items())]
        return ("env", *assignments, *self.argv) if assignments else self.argv

    def shell(self) -> str:
        """One line that a POSIX shell understands."""
        assignments = [f"{name}={shlex.quote(value)}" for name, value in sorted(self.env.items())]
        return " ".join([*(["env", *assignments] if assignments else []), shlex.join(self.argv)])


def render(
    place: Direct,
    *,
    python: str,
    attempt: Path,
    nproc: int,
    processes: Literal["torchrun", "plain"],
    max_restarts: int,
    restart_window: float,
    replica_groups: int,
    run_id: str,
    env: Mapping[str, str],
    import_path: str,
    cores: int,
    inherited: Mapping[str, str],
) -> Command:
    """The agent of this node.

    python: interpreter of the plan's environment. attempt: the attempt's directory. nproc: ranks on each node.
    restart_window: in seconds. run_id: equal on all nodes, new for each attempt. env: the plan's. import_path: the
    ``PYTHONPATH`` with which `python` finds Primus, by its first entry, and what the caller had there. cores: of this
    machine. inherited: the caller's environment, which decides only whether OMP_NUM_THREADS is set already.
    """
    argv = [python, "-P", "-m", "primus.runtime.agents.agent", str(attempt)]
    argv += ["--processes", processes, "--nproc", str(nproc), "--max-restarts", str(max_restarts)]
    argv += ["--restart-window", f"{restart_window:.12g}", "--run-id", run_id]
    if replica_groups > 1:
        argv += ["--replica-groups", str(replica_groups)]
    if place.nnodes > 1:
        argv += ["--nnodes", str(place.nnodes), "--node-rank", str(place.node_rank), "--rdzv", place.rdzv]
    variables = {**env, **place.env}
    variables["PYTHONPATH"] = _behind_ours(import_path, variables.get("PYTHONPATH", ""))
    if "OMP_NUM_THREADS" not in inherited and "OMP_NUM_THREADS" not in variables:
        # Each rank would otherwise start a thread on every core, and they would fight for them.
        variables["OMP_NUM_THREADS"] = str(max(1, cores // nproc))
    return Command(tuple(argv), variables)


def _behind_ours(import_path: str, chosen: str) -> str:
    """`chosen`, the experiment's or the place's ``PYTHONPATH``, between our entry, without which the ranks could not
    import Primus, and the caller's, from which the launcher may have taken the backend."""
    ours, *callers = import_path.split(os.pathsep)
    entries = dict.fromkeys([ours, *chosen.split(os.pathsep), *callers])
    return os.pathsep.join(entry for entry in entries if entry)
