"""Replica groups with a real engine: TorchTitan, torchft and gloo, two groups of one process."""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command_line import PLUGINS, Cli, environment_of, processes_with, unmeasured, wait_for
from overlay import overlay
from tiny import make_dataset

from primus.checkpoints import store
from primus.events.follow import read_run
from primus.runtime.agents.replicas import devices
from primus.runtime.environments.pins import read_lock

HAS_WHEEL = platform.machine() == "x86_64" and sys.platform == "linux" and sys.version_info[:2] <= (3, 13)
TOLERANCE = 1e-5

TINY = """\
extends: [models/tiny_llama, hardware/cpu]
name: tiny
model: {num_hidden_layers: 1, hidden_size: 64, intermediate_size: 128, vocab_size: 256}
data: {train: tokens, validation: 0.05}
train: {steps: 100000, global_batch_size: 4, seq_length: 32}
optimizer: {lr: 1e-3, schedule: {decay_steps: 2000}}
parallel: {data_replicate: 2}
precision: fp32
eval: {interval: 100, steps: 2}
monitor: {tensorboard: false}
checkpoint: {interval: 50, keep: 2}
resilience: {fault_tolerance: torchft, hang_timeout: 2m, max_restarts: 5}
"""


class Run:
    """One run directory, and the attempt that is under way."""

    def __init__(self, cli: Cli, directory: Path, path: str) -> None:
        self.cli, self.directory, self.path = cli, directory, path
        self.attempt = 0

    def start(self, *more: str) -> subprocess.Popen[str]:
        self.attempt += 1
        words = ["direct", "--nproc", "2", "--", "train", "pretrain", "--config", "tiny.yaml", *more]
        return self.cli.start(*words, PYTHONPATH=self.path)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Of this attempt, in the order in which they came about."""
        lines = [
            line
            for file in self.directory.glob(f"attempts/{self.attempt}/events-*.jsonl")
            for line in file.read_text().splitlines()
            if f'"{kind}"' in line
        ]
        return sorted((json.loads(line) for line in lines), key=lambda event: event["time"])

    def said(self, text: str) -> list[int]:
        return [event["step"] for event in self.events("notice") if re.search(text, event["message"])]

    def step(self) -> int:
        made = self.events("step_done")
        return int(made[-1]["step"]) if made else 0

    def kill(self, *groups: int) -> None:
        for pid in processes_with(f"primus.runtime.worker {self.directory}"):
            if int(environment_of(pid)["PRIMUS_REPLICA_GROUP"]) in groups:
                os.kill(pid, signal.SIGKILL)

    def weights(self) -> list[str]:
        """What every rank says of its weights when it ends."""
        logs = sorted(self.directory.glob(f"attempts/{self.attempt}/logs/rank-*.log"))
        found = [re.findall(r"weights and moments (\S+) in", log.read_text()) for log in logs]
        return [figures[-1] for figures in found if figures]


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Run:
    if not HAS_WHEEL:
        pytest.skip("torchft has wheels for Linux on x86-64 and Python up to 3.13 only")
    (tmp_path / "tiny.yaml").write_text(TINY)
    make_dataset(tmp_path / "tokens")
    path = os.pathsep.join([str(overlay("torchft", read_lock("torchft").pins["torchft"])), str(PLUGINS)])
    return Run(cli, tmp_path / "runs" / "tiny", path)


def test_groups_that_die_are_missed_for_a_step_and_come_back(run: Run, cli: Cli) -> None:
    """One run: a group dies and returns, both die, both stop, one dies right before the end. The curve is the one of a
    process that nothing happened to."""
    first = run.start()
    wait_for(lambda: run.step() >= 20, 120)
    before = run.step()
    run.kill(0)  # the one that speaks for all
    wait_for(lambda: run.said("all 2 replica groups are back"), 120)
    (short,) = run.said("from step .* on 1 of 2 replica groups: 1$")
    (joined,) = run.said("replica group 0 joins after")
    assert before < short <= joined
    assert run.said(f"steps {short} to {joined} were made by fewer") == [joined + 1]
    assert len(run.events("run_started")) == 1, "nobody started again from a checkpoint"

    wait_for(lambda: store.newest_intact(run.directory)[0], 60)
    run.kill(0, 1)
    wait_for(lambda: len(run.events("run_started")) == 2, 120)
    assert run.events("run_started")[1]["resumed_from"] % 50 == 0
    made = run.step()
    wait_for(lambda: run.step() > made + 10, 60)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 130, err
    info, _ = store.newest_intact(run.directory)
    assert info is not None
    assert f"stopped after step {info.step:,}" in out
    assert len(set(run.weights())) == 1
    assert len(run.weights()) == 2

    last = info.step + 60
    again = run.start(f"train.steps={last}")
    wait_for(lambda: run.step() > info.step + 10, 120)
    run.kill(1)
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert f"complete: {last:,} steps" in out
    assert run.said("replica group 1 came after the last step") == [last]
    assert not processes_with(str(run.directory))
    history = read_run(run.directory)
    assert history.status == "complete"
    assert list(history.steps.step) == list(range(1, last + 1))

    without = ("parallel.data_replicate=1", "resilience.fault_tolerance=restart", "checkpoint.interval=null")
    words = ("train", "pretrain", "--config", "tiny.yaml", "name=alone", f"train.steps={last}", *without)
    cli.env = unmeasured(cli.env)
    alone = cli(*words, timeout=240)
    assert alone.returncode == 0, alone.stderr
    whole = read_run(run.directory.parent / "alone")
    assert list(history.steps.loss) == pytest.approx(list(whole.steps.loss), abs=TOLERANCE, rel=0)
    evaluated = [{record["step"]: record["loss"] for record in each.evals} for each in (history, whole)]
    both = evaluated[0].keys() & evaluated[1].keys()  # none is made at a step where a run is stopped
    assert len(both) > 2
    for step in both:
        assert evaluated[0][step] == pytest.approx(evaluated[1][step], abs=TOLERANCE)


def test_a_group_sees_its_own_devices() -> None:
    own = range(2, 4)
    assert devices("cpu", own, {}) == {}
    assert devices("cuda", own, {}) == {"CUDA_VISIBLE_DEVICES": "2,3"}
    assert devices("rocm", own, {}) == {"HIP_VISIBLE_DEVICES": "2,3"}
    assert devices("rocm", own, {"CUDA_VISIBLE_DEVICES": "4,5,6,7"}) == {"CUDA_VISIBLE_DEVICES": "6,7"}
