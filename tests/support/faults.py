"""The faults: real signals to real processes, real damage to real files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anomalous import RARE
from fault_runs import ENGINES, INTERVAL, LONGEST, PLACES, STEPS, Run
from system import unavailable

LATE = INTERVAL + 2
"""The step after which faults strike: one checkpoint is there, the next one is not. Also the number of the global
batch, from 0, that makes a NaN."""

DIRECT, SLURM = ("direct",), ("slurm",)


@dataclass(frozen=True)
class Fault:
    """strike: what happens to a run that trains. code: the command's exit code in ``direct``. said: what it prints.
    places: where it can happen; ended_in: in which of them the run ends, so that the same command is given again.
    prepare: makes the run's directory. steps: of the run, which has to be longer than it takes to notice. resilience:
    settings of the run. left_out: the global batch that the run leaves out, so that it is compared with a run that
    knew before."""

    name: str
    strike: Callable[[Run], None]
    code: int = 0
    said: str = ""
    places: tuple[str, ...] = PLACES
    ended_in: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    steps: int = STEPS
    resilience: Mapping[str, Any] = field(default_factory=dict)
    left_out: int | None = None


def _send(number: signal.Signals, pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _rank(number: signal.Signals) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        run.wait_for_step(LATE)
        _send(number, run.ranks()[1])

    return strike


def _agent(number: signal.Signals) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        run.wait_for_step(LATE)
        _send(number, max(run.agents().values()))

    return strike


def _killed_with(damage: Callable[[Run], None]) -> Callable[[Run], None]:
    """Damage to the newest of two checkpoints, then the loss of a rank."""

    def strike(run: Run) -> None:
        run.wait_for_step(LATE)
        run.wait_for(lambda: len(run.checkpoints()) > 1, "a second checkpoint")
        damage(run)
        _send(signal.SIGKILL, run.ranks()[0])

    return strike


def _truncate(run: Run) -> None:
    path = run.largest_file(run.checkpoints()[-1])
    os.truncate(path, path.stat().st_size // 2)


def _flip(run: Run) -> None:
    path = run.largest_file(run.checkpoints()[-1])
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 0x10]))


def _slurmd(number: signal.Signals) -> Callable[[Run], None]:
    """Slurm's daemon of a node; what it has started goes on."""

    def strike(run: Run) -> None:
        run.wait_for_step(LATE)
        cluster, name = run.node()
        _send(number, cluster.daemons[name].pid)

    return strike


def _node_lost(run: Run) -> None:
    run.wait_for_step(LATE)
    cluster, name = run.node()
    cluster.kill_node(name)


def _node_drained(run: Run) -> None:
    run.wait_for_step(LATE)
    cluster, name = run.node()
    cluster.run("scontrol", "update", f"nodename={name}", "state=drain", "reason=a check failed")


def small_disk(directory: Path) -> None:
    """Checkpoints on a disk of their own that has room for four."""
    checkpoints = directory / "checkpoints"
    checkpoints.mkdir(parents=True)
    words = ["mount", "-t", "tmpfs", "-o", "size=14m", "checkpoints", str(checkpoints)]
    made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode:
        unavailable(f"a small disk cannot be mounted here: {made.stderr.strip()}")


def _fill(run: Run) -> None:
    """The disk is full until a save has failed."""
    run.wait_for_step(2)
    filler = run.directory / "checkpoints" / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    run.wait_for(lambda: "was not saved" in run.events(), "a save that failed")
    filler.unlink()


def _spoil(run: Run) -> Callable[[], None]:
    """A token of the data that the run will read becomes one without an embedding; returns what takes it back."""
    run.wait_for(run.ranks, "ranks")
    path, place = run.tokens_of(LATE)
    right = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(place)
        file.write(RARE.to_bytes(2, "little"))
    return lambda: _write(path, right)


def _write(path: Path, content: bytes) -> None:
    with path.open("r+b") as file:
        file.write(content)


def _nan_once(run: Run) -> None:
    mend = _spoil(run)
    run.wait_for(lambda: "the loss is nan" in run.events(), "a NaN", 120)
    mend()


def _nan(run: Run) -> None:
    _spoil(run)
    run.wait_for(lambda: "the loss is nan" in run.events(), "a NaN", 120)


def _two(run: Run) -> None:
    run.wait_for_step(LATE)
    ranks = run.ranks()
    _send(signal.SIGSTOP, ranks[0])
    _send(signal.SIGKILL, ranks[1])


def _launcher(number: signal.Signals) -> Callable[[Run], None]:
    def strike(run: Run) -> None:
        run.wait_for_step(LATE)
        _send(number, run.launcher())

    return strike


AGAIN = "the processes are started again"

FAULTS = (
    Fault("SIGKILL of a rank", _rank(signal.SIGKILL), said=AGAIN),
    Fault("SIGSEGV of a rank", _rank(signal.SIGSEGV), said=AGAIN),
    Fault("SIGSTOP of a rank", _rank(signal.SIGSTOP), said="rank 1 is stopped"),
    Fault("SIGTERM of a rank", _rank(signal.SIGTERM), code=143, ended_in=PLACES),
    Fault("SIGTERM of an agent", _agent(signal.SIGTERM), code=143, ended_in=PLACES),
    Fault("SIGSTOP of an agent", _agent(signal.SIGSTOP)),
    Fault("SIGKILL of an agent", _agent(signal.SIGKILL), code=1, ended_in=DIRECT),
    Fault("SIGKILL of the launcher", _launcher(signal.SIGKILL), code=-signal.SIGKILL, places=DIRECT, ended_in=DIRECT),
    Fault("SIGTERM of the launcher", _launcher(signal.SIGTERM), code=143, places=DIRECT, ended_in=DIRECT),
    Fault("SIGKILL of slurmd", _slurmd(signal.SIGKILL), places=SLURM),
    Fault("SIGSTOP of slurmd", _slurmd(signal.SIGSTOP), places=SLURM),
    Fault("SIGTERM of slurmd", _slurmd(signal.SIGTERM), places=SLURM),
    Fault("node lost", _node_lost, places=SLURM),
    Fault("node drained", _node_drained, places=SLURM, steps=LONGEST),
    Fault("checkpoint truncated, SIGKILL of a rank", _killed_with(_truncate), said=AGAIN),
    Fault("checkpoint bit-flipped, SIGKILL of a rank", _killed_with(_flip), said=AGAIN),
    Fault("disk full", _fill, prepare=small_disk),
    Fault("NaN", _nan_once, code=1, said="the loss is nan", ended_in=PLACES),
    Fault("NaN, anomaly: rollback", _nan, resilience={"anomaly": "rollback"}, left_out=LATE),
    Fault("SIGSTOP of one rank, SIGKILL of the other", _two, said=AGAIN),
)

COMBINATIONS = [(place, engine) for place in PLACES for engine in ENGINES]


@dataclass(frozen=True)
class Case:
    """One cell of the matrix."""

    fault: Fault
    place: str
    engine: str

    def __str__(self) -> str:
        return f"{self.fault.name}, {self.place}, {self.engine}"

    @property
    def again(self) -> bool:
        """Whether the same command has to be given again."""
        return self.place in self.fault.ended_in


CASES = [Case(fault, *where) for fault in FAULTS for where in COMBINATIONS if where[0] in fault.places]


def some() -> list[Case]:
    """Every fault once, places and engines by turns."""
    chosen = []
    for number, fault in enumerate(FAULTS):
        possible = [case for case in CASES if case.fault is fault]
        chosen.append(possible[number % len(possible)])
    return chosen
