"""Faults that hit a real run of two processes at a chosen step, and the check that its curve is the unbroken one's."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from command_line import Cli, environment_of, processes_with, wait_for

from primus.events.follow import read_run

EXPERIMENT = """\
extends: [models/tiny_llama, hardware/cpu]
name: {name}
backend: {backend}
model: {{num_hidden_layers: 1, hidden_size: 64, intermediate_size: 128, vocab_size: 256}}
data: {{train: synthetic}}
train: {{steps: 60, global_batch_size: 4, seq_length: 32}}
optimizer: {{lr: 1e-3}}
precision: fp32
monitor: {{tensorboard: false}}
checkpoint: {{interval: 5, keep: 3}}
resilience: {{hang_timeout: 5s}}
"""
BACKENDS = ("torchtitan", "megatron")
STEP = 17
"""After which the fault comes: two steps behind a checkpoint, which is still being written."""


@dataclass
class Broken:
    """A run that a fault is about to hit. launcher: of the command, started already."""

    directory: Path
    launcher: subprocess.Popen[str]

    def rank(self, number: int) -> int:
        found = processes_with(f"primus.runtime.worker {self.directory}/")
        return next(pid for pid in found if environment_of(pid).get("RANK") == str(number))

    @property
    def agent(self) -> int:
        return next(iter(processes_with(f"primus.runtime.agent {self.directory}/")))


@dataclass(frozen=True)
class Fault:
    """hit: does it. code: the command's exit code; when it is not 0 the same command is given again. said: what the
    command must print."""

    name: str
    hit: Callable[[Broken], None]
    code: int = 0
    said: str = ""


def _to(number: signal.Signals, whom: Callable[[Broken], int]) -> Callable[[Broken], None]:
    return lambda broken: os.kill(whom(broken), number)


def _both_ranks(broken: Broken) -> None:
    for pid in [broken.rank(0), broken.rank(1)]:
        os.kill(pid, signal.SIGKILL)


def _stopped_and_killed(broken: Broken) -> None:
    os.kill(broken.rank(0), signal.SIGSTOP)
    os.kill(broken.rank(1), signal.SIGKILL)


def _first(broken: Broken) -> int:
    return broken.rank(0)


def _second(broken: Broken) -> int:
    return broken.rank(1)


def _agent(broken: Broken) -> int:
    return broken.agent


def _launcher(broken: Broken) -> int:
    return int((broken.directory / "lock").read_text().partition('"pid": ')[2].partition(",")[0])


AGAIN = "the processes are started again"
FAULTS = (
    Fault("SIGKILL of a rank", _to(signal.SIGKILL, _second), said=AGAIN),
    Fault("SIGKILL of rank 0", _to(signal.SIGKILL, _first), said=AGAIN),
    Fault("SIGSEGV of a rank", _to(signal.SIGSEGV, _second), said=AGAIN),
    Fault("SIGSTOP of a rank", _to(signal.SIGSTOP, _second), said="rank 1 is stopped"),
    Fault("SIGTERM of a rank", _to(signal.SIGTERM, _second), code=143),
    Fault("SIGKILL of the agent", _to(signal.SIGKILL, _agent), code=1),
    Fault("SIGSTOP of the agent", _to(signal.SIGSTOP, _agent)),
    Fault("SIGTERM of the agent", _to(signal.SIGTERM, _agent), code=143),
    Fault("SIGKILL of the launcher", _to(signal.SIGKILL, _launcher), code=-signal.SIGKILL),
    Fault("SIGTERM of the launcher", _to(signal.SIGTERM, _launcher), code=143),
    Fault("SIGKILL of both ranks", _both_ranks, said=AGAIN),
    Fault("SIGSTOP of a rank, SIGKILL of another", _stopped_and_killed, said=AGAIN),
)


def words(folder: Path, name: str, backend: str) -> list[str]:
    """The command line of a run in `folder`, whose experiment file is made."""
    file = folder / f"{name}.yaml"
    file.write_text(EXPERIMENT.format(name=name, backend=backend))
    return ["direct", "--nproc", "2", "--", "train", "pretrain", "--config", str(file), "--runs-dir", str(folder)]


def curve(directory: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step that counts."""
    history = read_run(directory)
    assert history.status == "complete", history.status
    return list(zip(history.steps.step, history.steps.loss, strict=True))


def unbroken(cli: Cli, folder: Path, backend: str) -> list[tuple[int, float]]:
    done = cli(*words(folder, f"whole-{backend}", backend), timeout=240)
    assert done.returncode == 0, done.stderr
    return curve(folder / f"whole-{backend}")


def check(cli: Cli, folder: Path, backend: str, fault: Fault, whole: list[tuple[int, float]]) -> None:
    """Let `fault` hit a run on `backend`. Raises AssertionError when it does not end as the unbroken one, `whole`."""
    name = f"{fault.name.replace(' ', '-').replace(',', '')}-{backend}"
    command = words(folder, name, backend)
    broken = Broken(folder / name, cli.start(*command))
    events = broken.directory / "attempts/1/events-rank0.jsonl"
    wait_for(lambda: events.exists() and f'"step":{STEP},' in events.read_text(), 120)
    fault.hit(broken)
    out, err = broken.launcher.communicate(timeout=120)
    assert broken.launcher.returncode == fault.code, err
    assert fault.said in out, out
    wait_for(lambda: not processes_with(f"{broken.directory}/"), 15, "the end of every process")
    if fault.code:
        again = cli(*command, timeout=240)
        assert again.returncode == 0, again.stderr
    assert curve(broken.directory) == whole
