"""The agent of one node: starts its ranks, watches them, starts them again, ends them. One agent a node.

The launcher starts it in a session of its own, so a Ctrl-C at the terminal reaches the launcher alone, which decides.
Signals it takes:

- SIGTERM, SIGINT: ask the ranks to stop. They save and leave in their own time, minutes if the checkpoint is large.
- SIGUSR1: have every rank write its stack to its ``rank-N.stack`` file, and write what the kernel says of it.
- SIGUSR2: end the ranks now; this counts as a failure that a restart can mend (a hang was found).

It dies with the launcher, and the ranks with it. In a container, where the launcher is not its parent, it ends when its
standard input does (``--attached``).
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from primus.errors import PrimusError
from primus.events import units
from primus.events.bus import Bus
from primus.events.types import Notice, RankFailed, RanksStarted
from primus.runtime.agents import stacks
from primus.runtime.agents.restarts import LastStep, Restarts
from primus.runtime.processes import (
    FINAL,
    RETRYABLE,
    STOPPED,
    die_with_parent,
    ending,
    kernel_state,
    memory_kills,
    memory_limit,
    node_name,
    waiting_in,
)

TAIL_LINES = 300
GRACE_SECONDS = 1.0
"""After a failure, how long the other ranks of the node may take to say what they saw before they are killed. Nothing
they do is of use any more, and a collective with a rank that is gone may never return."""


@dataclass(frozen=True)
class Task:
    """What this node runs."""

    attempt: Path
    processes: str
    nproc: int
    nnodes: int
    node_rank: int
    rdzv: str
    run_id: str
    max_restarts: int
    restart_window: float
    attached: bool = False
    replica_groups: int = 1
    """Groups of ranks on this node. With several, this agent starts another one for each of them."""
    replica_group: int | None = None
    """The one that this agent is for."""

    @property
    def writer(self) -> str:
        """Of this agent's events."""
        group = "" if self.replica_group is None else f"-group{self.replica_group}"
        return f"node{self.node_rank}{group}"

    def number(self, rank: int) -> int:
        """Of a rank in the whole run, of which `rank` counts those of its group."""
        return rank + (self.replica_group or 0) * self.nproc * self.nnodes

    @property
    def worker(self) -> tuple[str, ...]:
        return (sys.executable, "-P", "-m", "primus.runtime.worker", str(self.attempt))


@dataclass
class Control:
    """What was asked of the agent. logs: where answers go. pids: the ranks' processes now, rank by rank.
    between: no rank has been started yet, or none again."""

    logs: Path | None = None
    pids: Callable[[], dict[int, int]] = field(default=dict)
    between: bool = True
    stopping: bool = False
    hung: bool = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGUSR1, self._ask)
        signal.signal(signal.SIGUSR2, self._end)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._send(signal.SIGTERM)
        if self.between:
            raise SystemExit(STOPPED)  # there is nothing to save

    def _end(self, number: int, frame: FrameType | None) -> None:
        self.hung = True
        self._send(signal.SIGKILL)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        for rank, pid in self.pids().items():  # before the signal wakes it
            if self.logs is not None:
                lines = {"node": node_name(), "pid": pid, "State": kernel_state(pid), "wchan": waiting_in(pid)}
                text = "".join(f"{name}: {value}\n" for name, value in lines.items())
                with suppress(OSError):
                    (self.logs / f"rank-{rank}.state").write_text(text, encoding="utf-8")
        self._send(signal.SIGUSR1)

    def _send(self, number: signal.Signals) -> None:
        for pid in self.pids().values():
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class Reporter:
    """Says which ranks were started, speaks for those that died without a word, and decides whether they are started
    again."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bus = Bus(task.attempt, task.writer)
        self.memory_kills = memory_kills()
        self.restarts = Restarts(task.max_restarts, task.restart_window)
        self.last_step = LastStep(task.attempt)

    def starting(self, start: int, first_rank: int) -> None:
        """Called before the ranks of this node are started. start: counts the starts of the attempt, from 0."""
        self.last_step.mark()
        self.bus.emit(
            RanksStarted(
                node=node_name(),
                node_rank=self.task.node_rank,
                first_rank=self.task.number(first_rank),
                last_rank=self.task.number(first_rank + self.task.nproc - 1),
                restart=start,
            )
        )

    def again(self, codes: Mapping[int, int], control: Control) -> bool:
        """Report what the ranks did not, and whether they are to be started again. codes: rank -> exit status, of
        those that ended by themselves."""
        hung, control.hung = control.hung, False
        codes = {self.task.number(rank): code for rank, code in codes.items()}
        for rank, code in codes.items():
            told = code in (RETRYABLE, FINAL) or (hung and code == -signal.SIGKILL)
            if not told and not (control.stopping and code == -signal.SIGTERM):
                self.bus.emit(self._death(rank, code))
        if FINAL in codes.values() or control.stopping:
            return False
        step = self.last_step.read()
        refusal = self.restarts.refuse(step)
        if refusal is None:
            what = "the run hung" if hung else f"{stacks.named(sorted(codes))} failed"
            left = units.plural(self.restarts.left, "further restart")
            self.bus.emit(Notice(message=f"{what}: the processes are started again, {left} allowed", step=step))
        elif refusal:
            self.bus.emit(Notice(message=refusal, step=step))
        return refusal is None

    def _death(self, rank: int, code: int) -> RankFailed:
        error, cause = ending(code), "died"
        if code == -signal.SIGKILL:
            if memory_kills() > self.memory_kills >= 0:
                limit = memory_limit()
                error += " by the kernel: out of memory" + (f" (limit {limit / 2**20:,.0f} MiB)" if limit else "")
            else:
                error += " from outside"
        if full(self.task.attempt):
            error += f" ({os.strerror(errno.ENOSPC)})"  # neither its log nor its events could say so
        log = self.task.attempt / "logs" / f"rank-{rank}.log"
        return RankFailed(rank=rank, node=node_name(), error=error, traceback=tail(log), cause=cause)


def full(directory: Path) -> bool:
    """Whether the disk takes no more."""
    try:
        return os.statvfs(directory).f_bavail == 0
    except OSError:
        return False


def tail(path: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log; empty when there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16384))
            return "\n".join(file.read().decode("utf-8", "replace").splitlines()[-lines:])
    except OSError:
        return ""


def parse(arguments: list[str]) -> Task:
    parser = argparse.ArgumentParser(prog="primus.runtime.agents.agent")
    parser.add_argument("attempt", type=Path)
    parser.add_argument("--processes", choices=["torchrun", "plain"], required=True)
    parser.add_argument("--nproc", type=int, required=True)
    parser.add_argument("--nnodes", type=int, default=1)
    parser.add_argument("--node-rank", type=int, default=0)
    parser.add_argument("--rdzv", default="")
    parser.add_argument("--run-id", required=True)
    parser.add_argument("--max-restarts", type=int, default=0)
    parser.add_argument("--attached", action="store_true")
    parser.add_argument("--replica-groups", type=int, default=1)
    parser.add_argument("--replica-group", type=int)
    parser.add_argument("--restart-window", type=float, default=3600.0)
    return Task(**vars(parser.parse_args(arguments)))


def _end_with_input() -> None:
    """The other end of standard input is the launcher's: it writes nothing, and closes it by dying."""
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGKILL)  # the ranks go with it


def main() -> None:
    control = Control()
    control.install()
    die_with_parent()
    task = parse(sys.argv[1:])
    control.logs = task.attempt / "logs"
    if task.attached:
        threading.Thread(target=_end_with_input, daemon=True).start()
    reporter = Reporter(task)
    if task.replica_groups > 1 and task.replica_group is None:
        from primus.runtime.agents.replicas import run
    elif task.processes == "torchrun":
        from primus.runtime.agents.elastic import run
    else:
        from primus.runtime.agents.plain import run
    code: object = 1
    try:
        code = run(task, control, reporter)
    except SystemExit as stop:
        code = stop.code
    except BaseException:  # noqa: BLE001 - the launcher shows it
        traceback.print_exc()
    for number in (signal.SIGTERM, signal.SIGINT):  # there is nothing left to stop
        signal.signal(number, signal.SIG_IGN)
    with suppress(PrimusError):  # a full disk, of which the log tells
        reporter.bus.close()  # what it has said outlives a crash of the machine
    sys.stderr.flush()
    # Not sys.exit: the stores of several starts, and ranks stuck in the kernel, may hold up an orderly end for ever.
    os._exit(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
