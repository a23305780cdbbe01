"""Restarts: the budget and its window, crash loops, ranks that would wait for ever, and nodes that restart together."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from command_line import Cli, environment_of, processes_with, wait_for
from gang import free_port

from primus.events.bus import Bus
from primus.events.follow import read_run
from primus.events.jsonl import read_lines
from primus.events.types import Notice, RunStarted, StepDone
from primus.runtime.agents.restarts import LastStep, Restarts


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_only_restarts_within_the_window_count() -> None:
    clock = Clock()
    restarts = Restarts(2, 60.0, clock)
    assert restarts.refuse(1) is None
    clock.now += 50
    assert restarts.refuse(2) is None
    assert restarts.left == 0
    refusal = restarts.refuse(3)
    assert refusal
    assert "2 restarts within 1:00 min" in refusal
    clock.now += 11  # the first is 61 seconds old
    assert restarts.left == 1
    assert restarts.refuse(4) is None
    assert restarts.number == 3


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        ([7, 7, 7], "3 starts in a row ended after step 7"),
        ([None, None, None], "3 starts in a row ended before training began"),
        ([9, 7, 7, 8, 7, 7, 7], "3 starts in a row ended after step 7"),
    ],
)
def test_a_crash_loop_ends_whatever_the_budget(ends: list[int | None], words: str) -> None:
    restarts = Restarts(100, 60.0)
    assert [restarts.refuse(step) for step in ends[:-1]] == [None] * (len(ends) - 1)
    assert words in (restarts.refuse(ends[-1]) or "")


def test_no_restarts_need_no_words() -> None:
    assert Restarts(0, 60.0).refuse(1) == ""


def test_the_last_step_is_that_of_this_start(tmp_path: Path) -> None:
    def step(number: int) -> StepDone:
        return StepDone(step=number, loss=1.0, grad_norm=1.0, lr=1.0, tokens=1, seconds=1.0, memory_bytes=1)

    def start(resumed: int | None) -> RunStarted:
        return RunStarted(name="x", attempt=1, world_size=1, device="cpu", parameters=1, steps=9, resumed_from=resumed)

    last = LastStep(tmp_path)
    assert last.read() is None
    with Bus(tmp_path, "rank0") as bus:
        last.mark()
        bus.emit(Notice(message="x" * 100_000))
        assert last.read() is None
        bus.emit(start(None))
        assert last.read() == 0
        bus.emit(step(5))
        assert last.read() == 5
        last.mark()
        assert last.read() is None
        bus.emit(start(4))
        assert last.read() == 4


def train(*more: str) -> list[str]:
    return ["direct", "--nproc", "2", "--", "train", "pretrain", "--config", "trial.yaml", *more]


def words(rank: int, port: int, *more: str) -> list[str]:
    place = ["direct", "--nnodes", "2", "--node-rank", str(rank), "--rdzv", f"127.0.0.1:{port}"]
    return [*place, "--", "train", "pretrain", "--config", "trial.yaml", *more]


def run_of(trial: Path) -> Path:
    return trial.parent / "runs" / "trial"


def kinds(trial: Path, writer: str) -> list[str]:
    path = run_of(trial) / f"attempts/1/events-{writer}.jsonl"
    return [line.split(b'"')[3].decode() for line in read_lines(path)]


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_a_crash_loop_stops_and_shows_its_cause(cli: Cli, trial: Path, backend: str) -> None:
    done = cli(
        *train(f"backend={backend}", "resilience.max_restarts=9", "checkpoint.interval=1"),
        COUNTING_FAULT="SIGKILL!:1:3",
        COUNTING_COUPLED="1",
    )
    assert done.returncode == 1
    assert kinds(trial, "rank0").count("run_started") == 3
    screen = " ".join(done.stderr.split())
    assert re.search(r"rank 1 on \S+ failed: killed by SIGKILL from outside", screen), screen
    assert "no further restart: 3 starts in a row ended after step 2" in screen
    assert "continue" in screen
    assert not processes_with(str(run_of(trial)))


def test_a_stop_while_nodes_restart_ends_them_all(cli: Cli, trial: Path) -> None:
    """The second node is gone before its rank is there: the first would wait for it for ten minutes."""
    port = free_port()
    more = ("train.steps=100000", "checkpoint.interval=5", "resilience.max_restarts=3")
    first, second = (cli.start(*words(rank, port, *more), COUNTING_COUPLED="1") for rank in (0, 1))
    events = run_of(trial) / "attempts/1/events-rank0.jsonl"
    wait_for(lambda: events.exists() and "checkpoint_saved" in events.read_text(), 60)
    workers = processes_with(f"primus.runtime.worker {run_of(trial)}")
    os.kill(next(pid for pid in workers if environment_of(pid)["RANK"] == "1"), signal.SIGKILL)
    wait_for(lambda: "notice" in kinds(trial, "node1"))
    second.send_signal(signal.SIGTERM)
    for process in (second, first):
        _, err = process.communicate(timeout=40)
        assert process.returncode == 143, err


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_nodes_restart_together(cli: Cli, trial: Path, backend: str) -> None:
    """A rank of the second node is killed twice; the first node's rank, which would wait for ever, is ended too."""
    port = free_port()
    more = (f"backend={backend}", "train.steps=100000", "checkpoint.interval=5", "resilience.max_restarts=3")
    both = [cli.start(*words(rank, port, *more), COUNTING_COUPLED="1") for rank in (0, 1)]
    events = run_of(trial) / "attempts/1/events-rank0.jsonl"
    for start in (1, 2):
        wait_for(lambda: events.exists() and events.read_text().count("run_started") == start, 60)  # noqa: B023
        wait_for(lambda: "checkpoint_saved" in events.read_text().rpartition("run_started")[2])
        workers = processes_with(f"primus.runtime.worker {run_of(trial)}")
        (second,) = [pid for pid in workers if environment_of(pid)["RANK"] == "1"]
        os.kill(second, signal.SIGKILL)
    wait_for(lambda: events.read_text().count("run_started") == 3, 60)
    wait_for(lambda: "step_done" in events.read_text().rpartition("run_started")[2])
    for process in both:
        process.send_signal(signal.SIGTERM)
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        assert "rank 1 failed: the processes are started again" in out
    assert "rank_failed" in kinds(trial, "node1")
    steps = read_run(run_of(trial)).steps.step
    assert list(steps) == list(range(1, steps[-1] + 1))


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_a_node_whose_launcher_was_killed_joins_again(cli: Cli, trial: Path, backend: str) -> None:
    port = free_port()
    more = (f"backend={backend}", "train.steps=100000", "checkpoint.interval=5", "resilience.max_restarts=3")
    first, second = [cli.start(*words(rank, port, *more), COUNTING_COUPLED="1") for rank in (0, 1)]
    events = run_of(trial) / "attempts/1/events-rank0.jsonl"
    wait_for(lambda: events.exists() and "checkpoint_saved" in events.read_text(), 60)
    second.kill()
    second.communicate()
    again = cli.start(*words(1, port, *more), COUNTING_COUPLED="1")
    wait_for(lambda: events.read_text().count("run_started") == 2, 60)
    wait_for(lambda: "step_done" in events.read_text().rpartition("run_started")[2])
    for process in (first, again):
        process.send_signal(signal.SIGTERM)
    for process in (first, again):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
