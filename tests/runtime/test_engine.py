"""The same from the outside with a real engine on two processes: TorchTitan, gloo, FSDP."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from command_line import Cli, environment_of, processes_with, unmeasured, wait_for

from primus.checkpoints import store
from primus.events.follow import read_run

TINY = """\
extends: [models/tiny_llama, hardware/cpu]
name: tiny
model: {num_hidden_layers: 1, hidden_size: 64, intermediate_size: 128, vocab_size: 256}
data: {train: synthetic}
train: {steps: 100000, global_batch_size: 4, seq_length: 32}
optimizer: {lr: 1e-3}
precision: fp32
monitor: {tensorboard: false}
checkpoint: {interval: 20, keep: 2}
"""


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Path:
    cli.env = unmeasured(cli.env)
    (tmp_path / "tiny.yaml").write_text(TINY)
    return tmp_path / "runs" / "tiny"


def words(*more: str) -> list[str]:
    return ["direct", "--nproc", "2", "--", "train", "pretrain", "--config", "tiny.yaml", *more]


def newest(run: Path) -> int:
    info, problems = store.newest_intact(run)
    assert not problems
    return info.step if info else 0


def ranks(run: Path) -> dict[str, int]:
    found = {environment_of(pid).get("RANK", ""): pid for pid in processes_with(f"primus.runtime.worker {run}")}
    return {rank: pid for rank, pid in found.items() if rank}


def test_killed_rank_then_stop_then_killed_launcher_then_done(cli: Cli, run: Path) -> None:
    """One run through four lives; every life begins where the one before had saved, and no step is missing."""
    first = cli.start(*words())
    wait_for(lambda: newest(run) >= 20, 120)
    before = ranks(run)
    os.kill(before["1"], signal.SIGKILL)
    wait_for(lambda: len(ranks(run)) == 2 and not ranks(run).items() & before.items(), 60)
    events = run / "attempts/1/events-rank0.jsonl"
    wait_for(lambda: events.read_text().count("run_started") == 2, 60)
    wait_for(lambda: "step_done" in events.read_text().rpartition("run_started")[2])
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate(timeout=60)
    assert first.returncode == 143, err
    assert re.search(r"rank 1 on \S+ failed: killed by SIGKILL from outside", out), out
    assert "the processes are started again, 2 further restarts allowed" in out
    assert not ranks(run)

    second = cli.start(*words())
    wait_for((run / "attempts/2/events-rank0.jsonl").exists, 60)
    wait_for(lambda: "step_done" in (run / "attempts/2/events-rank0.jsonl").read_text(), 60)
    second.send_signal(signal.SIGINT)
    out, err = second.communicate(timeout=60)
    assert second.returncode == 130, err
    stopped = newest(run)
    assert f"stopped after step {stopped:,}" in out

    third = cli.start(*words())
    wait_for(lambda: newest(run) > stopped + 20, 120)
    third.kill()
    third.communicate()

    done = cli(*words(f"train.steps={newest(run) + 30}"), timeout=180)
    assert done.returncode == 0, done.stderr
    history = read_run(run)
    assert list(history.steps.step) == list(range(1, history.steps.step[-1] + 1))
    assert history.status == "complete"
    assert not processes_with(str(run))


def test_a_stop_while_the_engine_is_still_starting_is_clean(cli: Cli, run: Path) -> None:
    process = cli.start(*words())
    wait_for(lambda: len(ranks(run)) == 2, 60)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 143, err
    assert "primus-cli direct --nproc 2 -- train pretrain --config tiny.yaml" in out
    assert not processes_with(str(run))
