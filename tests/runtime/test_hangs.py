"""Hangs: found in time, every rank's stack kept, the one that is behind named, and the run goes on."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from command_line import Cli, environment_of, processes_with, wait_for

from primus.config.load import load
from primus.config.units import SHORTEST_MULTIPLE, SHORTEST_START, collective_seconds, first_collective_seconds
from primus.events.follow import read_run
from primus.plan.planner import make_plan
from primus.runtime.agents.stacks import Rank, behind
from primus.runtime.patience import PAUSE_SECONDS, Patience

WAITING = [("/env/torch/distributed/distributed_c10d.py", "2810", "all_reduce")]
WORKING = [("/src/counting/__init__.py", "12", "_fault")]


def rank(number: int, step: int | None = 7, stack: Any = WAITING, state: str = "S (sleeping)") -> Rank:
    return Rank(number, step, stack, {"node": "n1", "pid": str(100 + number), "State": state, "wchan": "futex_wait"})


@pytest.mark.parametrize(
    ("ranks", "number", "words"),
    [
        ([rank(0), rank(1, stack=[], state="T (stopped)")], 1, "rank 1 is stopped (State: T (stopped), in futex_wait"),
        ([rank(0), rank(1, stack=[], state="D (disk sleep)")], 1, "rank 1 is stuck in the kernel (State: D"),
        ([rank(0), rank(1, stack=[]), rank(2, stack=[])], 1, "ranks 1, 2 did not even answer a signal"),
        ([rank(0, stack=WORKING), rank(1)], 0, "rank 0 did not join the others, who wait: counting/__init__.py:12"),
        ([rank(0, step=8), rank(1), rank(2, step=8)], 1, "rank 1 finished step 7, others 8"),
        ([rank(0), rank(1)], None, "rank 0 stands in distributed/distributed_c10d.py:2810 (all_reduce); rank 1"),
        ([], None, "no rank has begun to work"),
    ],
)
def test_the_rank_that_is_behind(ranks: list[Rank], number: int | None, words: str) -> None:
    found, said = behind(ranks)
    assert (found.number if found else None) == number
    assert words in said


def patience(trial: Path, *more: str) -> Patience:
    overrides = ["backend=torchtitan", "checkpoint.interval=50", *more]
    return Patience(make_plan(load(trial, overrides), run_directory=trial.parent / "run"))


def steps(watched: Patience, first: int, last: int, seconds: float) -> None:
    for step in range(first, last + 1):
        watched.step({"step": step, "seconds": seconds})


def test_a_multiple_of_the_step_follows_the_run(trial: Path) -> None:
    watched = patience(
        trial, "resilience.hang_timeout=20x", "train.steps=1000", "eval.interval=30", "data.validation=0.1"
    )
    assert watched.limit == SHORTEST_START
    steps(watched, 1, 3, 5.0)
    assert watched.limit == PAUSE_SECONDS  # too few to know
    steps(watched, 4, 20, 5.0)
    assert watched.limit == 100.0
    steps(watched, 21, 49, 0.001)
    assert watched.limit == SHORTEST_MULTIPLE
    steps(watched, 50, 50, 5.0)
    assert watched.limit == PAUSE_SECONDS  # a checkpoint is due
    steps(watched, 51, 51, 5.0)
    assert watched.limit < PAUSE_SECONDS
    steps(watched, 60, 60, 5.0)
    assert watched.limit == PAUSE_SECONDS  # validation
    watched.started()
    assert watched.limit == SHORTEST_START


def test_a_duration_holds_from_the_first_step_on(trial: Path) -> None:
    watched = patience(trial, "resilience.hang_timeout=5s")
    assert watched.limit == SHORTEST_START
    steps(watched, 1, 1, 100.0)
    assert watched.limit == 5.0
    assert patience(trial, "resilience.hang_timeout=2h").limit == 7200.0


def test_the_time_to_the_first_step_has_a_limit_of_its_own(trial: Path) -> None:
    for hang_timeout in ("20x", "5s", "2h"):
        watched = patience(trial, f"resilience.hang_timeout={hang_timeout}", "resilience.start_timeout=30m")
        assert watched.limit == 1800.0
        assert str(watched) == "resilience.start_timeout is 30m"
    assert str(patience(trial)) == "resilience.start_timeout is 10:00 min"
    steps(watched, 1, 1, 1.0)
    assert str(watched) == "resilience.hang_timeout is 2h"


def test_collectives_wait_longer_than_the_launcher() -> None:
    assert collective_seconds("10s") > 10 + 2
    assert collective_seconds("20x") > 3600
    assert first_collective_seconds("20m", "10s") > 1200 + 2


def train(*more: str) -> list[str]:
    restart = ("resilience.max_restarts=3", "checkpoint.interval=1")
    return ["direct", "--nproc", "2", "--", "train", "pretrain", "--config", "trial.yaml", *restart, *more]


def run_of(trial: Path) -> Path:
    return trial.parent / "runs" / "trial"


def test_a_hang_names_the_rank_that_is_stuck_and_goes_on(cli: Cli, trial: Path) -> None:
    done = cli(*train("resilience.hang_timeout=2s", "train.steps=6"), COUNTING_FAULT="hang:0:3", COUNTING_COUPLED="1")
    assert done.returncode == 0, done.stderr
    history = read_run(run_of(trial))
    assert list(history.steps.step) == list(range(1, 7))
    (failure,) = history.failures
    assert (failure["rank"], failure["cause"]) == (0, "hang")
    assert failure["error"].startswith(
        "the run hangs: no step for 2 s (resilience.hang_timeout is 2s); rank 0 stands in"
    )
    assert "the run hung: the processes are started again" in done.stdout
    kept = run_of(trial) / "attempts/1/logs/hang-1"
    for number, place in ((0, "in _fault"), (1, "in _meet")):
        text = (kept / f"rank-{number}.stack").read_text()
        assert text.startswith("finished step 2 ")
        assert place in text
    assert re.search(r"State: [SR] \(", (kept / "rank-1.state").read_text())
    assert not processes_with(str(run_of(trial)))


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_a_stopped_rank_is_found_in_time_and_the_run_goes_on(cli: Cli, trial: Path, backend: str) -> None:
    more = ("resilience.hang_timeout=2s", "train.steps=100000", f"backend={backend}")
    process = cli.start(*train(*more), COUNTING_COUPLED="1")
    events = run_of(trial) / "attempts/1/events-rank0.jsonl"
    wait_for(lambda: events.exists() and "step_done" in events.read_text(), 60)
    ranks = {environment_of(pid).get("RANK"): pid for pid in processes_with(f"primus.runtime.worker {run_of(trial)}")}
    os.kill(ranks["1"], signal.SIGSTOP)
    began = time.monotonic()
    said = run_of(trial) / "attempts/1/events-launcher0.jsonl"
    wait_for(lambda: "the run hangs" in said.read_text(), 10)
    assert 1.9 < time.monotonic() - began < 4
    wait_for(lambda: events.read_text().count("run_started") == 2, 60)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert re.search(r"rank 1 on \S+ failed at step \d+: the run hangs: no step for 2 s", out), out
    assert re.search(r"rank 1 is stopped \(State: T \(stopped\), in \S+, process \d+\)", out), out
    assert (run_of(trial) / "attempts/1/logs/hang-1/rank-1.state").exists()


def test_a_hang_that_is_not_mended_is_on_the_screen(cli: Cli, trial: Path) -> None:
    done = cli(
        *train("resilience.hang_timeout=1s", "resilience.max_restarts=0"),
        COUNTING_FAULT="hang!:1:3",
        COUNTING_COUPLED="1",
    )
    assert done.returncode == 1
    screen = " ".join(done.stderr.split())
    assert re.search(r"rank \d on \S+ failed after step 2: the run hangs: no step for 1 s", screen), screen
    assert "likely cause" not in screen or "behind" in screen
    assert "what to do read every rank's stack in" in screen


def test_a_run_whose_files_were_deleted_saves_and_says_so(cli: Cli, trial: Path) -> None:
    process = cli.start(*train("resilience.hang_timeout=1s", "train.steps=100000"), COUNTING_COUPLED="1")
    attempt = run_of(trial) / "attempts/1"
    wait_for(lambda: (attempt / "events-rank0.jsonl").exists() and list(run_of(trial).glob("checkpoints/*")), 60)
    shutil.rmtree(attempt)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    screen = " ".join(err.split())
    assert f"{attempt} was deleted or moved, so that the ranks were not heard any more" in screen, screen
    assert "run again: it continues from the newest checkpoint that is left" in screen
    assert not processes_with(str(run_of(trial)))


def test_a_hang_before_the_first_step_is_found_in_its_own_time(cli: Cli, trial: Path) -> None:
    more = ("resilience.start_timeout=2s", "resilience.max_restarts=0")
    done = cli(*train(*more), COUNTING_FAULT="hang:1:1", COUNTING_COUPLED="1")
    assert done.returncode == 1
    screen = " ".join(done.stderr.split())
    assert "the run hangs: no step for 2 s (resilience.start_timeout is 2s); rank 0 stands in" in screen, screen
    assert "raise resilience.start_timeout if it may take so long" in screen


def test_a_stopped_agent_is_let_go_on(cli: Cli, trial: Path) -> None:
    """Its rank is killed meanwhile: without the agent nobody would notice."""
    process = cli.start(*train("train.steps=100000"), COUNTING_COUPLED="1")
    events = run_of(trial) / "attempts/1/events-rank0.jsonl"
    wait_for(lambda: events.exists() and "step_done" in events.read_text(), 60)
    (agent,) = processes_with(f"primus.runtime.agents.agent {run_of(trial)}")
    os.kill(agent, signal.SIGSTOP)
    workers = processes_with(f"primus.runtime.worker {run_of(trial)}")
    os.kill(next(iter(workers)), signal.SIGKILL)
    wait_for(lambda: events.read_text().count("run_started") == 2, 60)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "the agent of node 0 had been stopped (SIGSTOP); it goes on now" in out
