"""The runs that faults hit: one tiny experiment on a real engine, two processes, seen from outside."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import anomalous
import yaml
from command_line import Cli, environment_of, processes_with, wait_for
from slurm_cluster import Cluster
from tiny import make

from primus.data.reader import open_training
from primus.events.history import RunHistory, read_run
from primus.plan.plan import Plan

ENGINES = ("torchtitan", "megatron")
PLACES = ("direct", "slurm")
STEPS, INTERVAL = 30, 5
LONGEST = 4 * STEPS
BATCH, SEQ, SEED = 16, 128, 7
HANG_SECONDS = 8
PATIENCE = 240
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")

Curve = list[tuple[int, float, float]]
"""(step, loss, gradient norm) of every step that counts."""


def make_source(directory: Path) -> None:
    """What every run starts from: ``data``, where every window comes once in ``STEPS`` steps and the token of
    ``anomalous`` never, and ``weights``, in which this token has no embedding."""
    data = anomalous.dataset(directory / "data" / "chain", (), 200_000)
    anomalous.save_start(make(directory / "start", data, train__seed=SEED), directory / "weights")


def experiment(name: str, engine: str, source: Path, directory: Path, *, steps: int = STEPS, **resilience: Any) -> Path:
    """An experiment file in `directory`, which gets the data for itself. source: of ``make_source``."""
    data = shutil.copytree(source / "data", directory / "data", dirs_exist_ok=True)
    tree = {
        "name": name,
        "backend": engine,
        "hardware": {"name": "cpu", "device": "cpu"},
        "model": {"init": str(source / "weights")},
        "data": {"train": str(data / "chain")},
        "train": {"steps": steps, "global_batch_size": BATCH, "micro_batch_size": 4, "seq_length": SEQ, "seed": SEED},
        "optimizer": {"lr": 1.0e-2, "schedule": {"name": "cosine", "warmup_steps": 2, "decay_steps": LONGEST}},
        "parallel": {"data_shard": 2},
        "precision": "fp32",
        "checkpoint": {"interval": INTERVAL, "keep": 3},
        "monitor": {"tensorboard": False},
        "resilience": {"hang_timeout": f"{HANG_SECONDS}s", **resilience},
    }
    path = directory / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def curve(history: RunHistory) -> Curve:
    steps = history.steps
    return list(zip(steps.step, steps.loss, steps.grad_norm, strict=True))


@dataclass
class Matrix:
    """What the tests of a session share. source: of ``make_source``. curves: of runs to which nothing happened, by
    engine and the global batch that is left out. cells: what came of each case."""

    source: Path
    curves: dict[tuple[str, int | None], Curve] = field(default_factory=dict)
    cells: dict[str, str] = field(default_factory=dict)


@dataclass
class Run:
    """A run under way, wherever it runs. ended: None while it does. job: the cluster it is in, and its number there."""

    directory: Path
    ended: Callable[[], int | None]
    job: tuple[Cluster, str] | None = None

    def step(self) -> int:
        """The newest step that was reported."""
        newest = 0
        for path in self.directory.glob("attempts/*/events-rank0.jsonl"):
            found = re.findall(rb'"event":"step_done".*?"step":(\d+)', path.read_bytes())
            newest = max(newest, int(found[-1])) if found else newest
        return newest

    def wait_for_step(self, step: int, seconds: float = 120.0) -> None:
        self.wait_for(lambda: self.step() >= step, f"step {step}", seconds)

    def wait_for(self, condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
        until, asked = time.monotonic() + seconds, 0.0
        while not condition():
            now = time.monotonic()
            if now - asked > 1:  # Slurm's answer costs as much as a step
                assert self.ended() is None, f"the run ended before {what}"
                asked = now
            assert now < until, f"{what} did not come within {seconds:g} s"
            time.sleep(0.02)

    def events(self) -> str:
        """All that was reported."""
        return "".join(path.read_text() for path in self.directory.glob("attempts/*/events-*.jsonl"))

    def history(self) -> RunHistory:
        return read_run(self.directory)

    def ranks(self) -> dict[int, int]:
        """rank -> process, of those that live."""
        pids = processes_with(f"primus.runtime.worker {self.directory}/attempts/")
        return {int(environment_of(pid)["RANK"]): pid for pid in pids}

    def node(self) -> tuple[Cluster, str]:
        """The second node of the job, and its cluster."""
        assert self.job is not None
        cluster, number = self.job
        names = cluster.run("scontrol", "show", "hostnames", cluster.show(number)["NodeList"]).split()
        return cluster, names[-1]

    def agents(self) -> dict[int, int]:
        """node -> process of its agent."""
        found = processes_with(f"primus.runtime.agents.agent {self.directory}/attempts/")
        nodes = {pid: re.search(r"--node-rank (\d+)", line) for pid, line in found.items()}
        return {int(match[1]) if match else 0: pid for pid, match in nodes.items()}

    def wait_for_no_process(self) -> None:
        wait_for(lambda: not processes_with(f"{self.directory}/attempts/"), 60, "the end of every process")

    def launcher(self) -> int:
        """The process that holds the run's lock."""
        return int(json.loads((self.directory / "lock").read_text())["pid"])

    def checkpoints(self) -> list[Path]:
        """Complete ones, oldest first."""
        found = [path.parent for path in self.directory.glob("checkpoints/step-*/manifest.json")]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def tokens_of(self, batch: int) -> tuple[Path, int]:
        """The file of the run's data, and where in it the global batch has its first sample."""
        plan = Plan.load(self.directory / "plan.json")
        _, windows = open_training(plan).locate(batch * BATCH, 1)  # type: ignore[attr-defined]
        return Path(f"{plan.data.sources[0].prefix}.bin"), 2 * SEQ * int(windows[0])

    def largest_file(self, checkpoint: Path) -> Path:
        return max(checkpoint.glob("[!m]*"), key=lambda path: path.stat().st_size)


class Place(Protocol):
    """Where a run is started."""

    def start(self, file: Path, *more: str) -> Run: ...

    def wait(self, run: Run) -> str:
        """Until it is over; returns what it said."""
        ...


class Direct:
    """Two processes of this machine."""

    def __init__(self, cli: Cli) -> None:
        self.cli = cli

    def start(self, file: Path, *more: str) -> Run:
        process = self.cli.start("direct", "--nproc", "2", "--", "train", "pretrain", "--config", file, *more)
        return Run(self.cli.home / "runs" / file.stem, process.poll)

    def wait(self, run: Run) -> str:
        return "".join(self.cli.started[-1].communicate(timeout=PATIENCE))


def unbroken(cli: Cli, engine: str, source: Path) -> Curve:
    """The curve of a run to which nothing happens, on this machine. source: where ``make_source`` puts what it starts
    from."""
    make_source(source)
    direct = Direct(cli)
    run = direct.start(experiment("whole", engine, source, cli.home))
    said = direct.wait(run)
    history = run.history()
    assert history.status == "complete", said
    return curve(history)


class OnSlurm:
    """Two nodes of a real Slurm, one process on each."""

    def __init__(self, cli: Cli, cluster: Cluster) -> None:
        self.cli, self.cluster = cli, cluster

    def start(self, file: Path, *more: str) -> Run:
        done = self.cli("slurm", "-N", "2", "--", "train", "pretrain", "--config", file, *more)
        job = re.search(r"queued as Slurm job (\d+)", done.stdout)
        assert job, done.stdout + done.stderr

        def ended() -> int | None:
            state = self.cluster.state(job[1])
            return ENDED.index(state) if state in ENDED else None

        return Run(self.cli.home / "runs" / file.stem, ended, (self.cluster, job[1]))

    def wait(self, run: Run) -> str:
        until = time.monotonic() + PATIENCE
        while run.ended() is None and time.monotonic() < until:
            time.sleep(0.5)
        return "".join(path.read_text(errors="replace") for path in run.directory.glob("jobs/*/job.log"))
