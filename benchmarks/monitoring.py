"""What monitoring costs a training step: nothing forwarded, everything, and everything to servers that never answer.

    python benchmarks/monitoring.py [--steps 600] [--repeats 3] [--config FILE] [key=value ...]

Whole runs of `train pretrain`, in turns, the first kind twice to show the noise. A step's time is the median of a
run's second half, as its events tell: in the first the monitor starts, which takes some seconds of one core and is
shown apart. Then how much work forwarding is: 10,000 steps, told by an event file, to a Prometheus exporter, MLflow on
SQLite and W&B's files at once.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from primus.config.load import load
from primus.events.bus import Bus
from primus.events.history import read_run
from primus.events.monitor.tracker import Mark, mark_file
from primus.events.types import RunEnded, RunStarted, StepDone
from primus.plan.planner import make_plan
from primus.runtime.environments import provide
from primus.runtime.monitoring import Monitoring
from primus.runtime.run_directory import RunDirectory

CLI = Path(__file__).resolve().parents[1] / "primus-cli"
EXAMPLE = """
extends: [models/tiny_llama, hardware/cpu]
name: monitored
data: {train: synthetic}
train: {steps: 600, global_batch_size: 4, micro_batch_size: 4, seq_length: 128}
optimizer: {lr: 1.0e-3}
precision: fp32
"""
ALL = ("monitor.prometheus={}", "monitor.mlflow={}", "monitor.wandb={}")
FORWARDED = 10_000
GOAL = 1.02
WARM = 3
"""Steps left out: the first ones allocate."""


@dataclass(frozen=True)
class Trained:
    """Median seconds of a step in each half of a run, and of the whole command."""

    starting: float
    step: float
    whole: float


def trained(config: Path, root: Path, name: str, overrides: list[str], **variables: str) -> Trained:
    command = [str(CLI), "train", "pretrain", "--config", str(config), f"name={name}", *overrides]
    began = time.monotonic()
    done = subprocess.run(
        command, env={**os.environ, "PRIMUS_RUNS": str(root), **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    whole, seconds = time.monotonic() - began, read_run(root / name).steps.seconds
    half = len(seconds) // 2
    return Trained(statistics.median(seconds[WARM:half]), statistics.median(seconds[half:]), whole)


def forwarded(root: Path, config: Path) -> tuple[float, float]:
    """Seconds, and CPU-seconds of the monitor and what it starts, for FORWARDED steps."""
    resolved = load(config, (f"train.steps={FORWARDED}", "name=forwarded", *ALL), {})
    plan = make_plan(resolved, nnodes=1, nproc=None, run_directory=root / "forwarded")
    directory = RunDirectory(root / "forwarded")
    directory.path.mkdir(parents=True)
    attempt = directory.begin(plan, [])
    with Bus(attempt.directory, "rank0") as bus:
        bus.emit(RunStarted(name="forwarded", attempt=1, world_size=1, device="cpu", parameters=1, steps=FORWARDED))
        for step in range(1, FORWARDED + 1):
            bus.emit(
                StepDone(
                    step=step, loss=9 / step, grad_norm=1.0, lr=1e-3, tokens=512, seconds=0.1, memory_bytes=1 << 30
                )
            )
        bus.emit(RunEnded(reason="complete", step=FORWARDED))
    python = provide("monitor")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    monitoring = Monitoring(python, attempt)
    while any(Mark.load(mark_file(directory.path, name)).step < FORWARDED for name in ("mlflow", "wandb")):
        time.sleep(0.1)
    monitoring.finish()
    seconds, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--config", type=Path)
    parser.add_argument("overrides", nargs="*")
    given = parser.parse_args()
    provide("monitor")
    with tempfile.TemporaryDirectory() as folder, socket.socket() as swallowing:
        root, config = Path(folder) / "runs", given.config or Path(folder) / "example.yaml"
        if given.config is None:
            config.write_text(EXAMPLE, encoding="utf-8")
        swallowing.bind(("127.0.0.1", 0))
        swallowing.listen(64)  # and nobody ever accepts
        dead = f"http://127.0.0.1:{swallowing.getsockname()[1]}"
        away = {"WANDB_BASE_URL": dead, "WANDB_API_KEY": "0" * 40, "MLFLOW_TRACKING_URI": dead}
        sides: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
            "nothing forwarded": ((), {}),
            "Prometheus, MLflow, W&B": (ALL, {}),
            "the same, never answering": (ALL, away),
            "nothing forwarded, again": ((), {}),
        }
        found: dict[str, list[Trained]] = {side: [] for side in sides}
        for repeat in range(given.repeats):
            for number, (side, (keys, variables)) in enumerate(sides.items()):
                overrides = [f"train.steps={given.steps}", *keys, *given.overrides]
                found[side].append(trained(config, root, f"run-{repeat}-{number}", overrides, **variables))
        print(f"{'':<28}{'step, ms':>10}{'ratio':>8}{'goal':>7}{'ratio while it starts':>24}{'whole run, s':>14}")
        first = next(iter(found.values()))
        for side, runs in found.items():
            step, whole = (statistics.median(getattr(run, part) for run in runs) for part in ("step", "whole"))
            ratio = statistics.median(a.step / b.step for a, b in zip(runs, first, strict=True))
            starting = statistics.median(a.starting / b.starting for a, b in zip(runs, first, strict=True))
            goal = f"{GOAL:.2f}" if sides[side][0] else ""
            print(f"{side:<28}{1e3 * step:>10.1f}{ratio:>8.3f}{goal:>7}{starting:>24.3f}{whole:>14.1f}")
        seconds, cpu = forwarded(root, config)
        print(f"{FORWARDED:,} steps forwarded to all three: {seconds:.1f} s, {cpu:.1f} CPU-s with start-up")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
