"""MaxText's workers from outside: killed among others, what was lost is made again bit by bit; a dataset that is cut
under a run ends it with its name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import forks
import pytest
from gang import SOURCES, environment, free_port
from tiny import make, make_dataset

from primus.checkpoints import store
from primus.events.follow import read_run
from primus.plan.plan import Plan
from primus.runtime.environments import provide
from primus.runtime.processes import FINAL, RETRYABLE

STEPS = 8
TWO: dict[str, Any] = {
    "backend": "maxtext",
    "train__steps": STEPS,
    "train__micro_batch_size": 2,
    "optimizer__schedule__decay_steps": STEPS,
    "parallel__data_shard": 2,
    "checkpoint__interval": 2,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "chain")


def launch(plan: Plan, attempt: int) -> list[forks.Forked]:
    """The processes of `plan`, one for each node, as their agents start them."""
    directory = Path(plan.run_directory) / "attempts" / str(attempt)
    (directory / "logs").mkdir(parents=True)
    (directory / "plan.json").write_text(plan.to_json(), encoding="utf-8")
    ranks, port = plan.topology.nnodes, free_port()
    ours = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    processes = []
    for rank in range(ranks):
        variables = {**ours, **environment(rank, ranks, port), "LOCAL_RANK": "0"}
        source = forks.source("maxtext", provide("jax"), variables, plan.env)
        log = directory / f"process-{rank}.log"
        worker = SOURCES / "primus" / "runtime" / "worker.py"
        processes.append(source.start(worker, [str(directory)], {**variables, **plan.env}, log))
    return processes


def wait(processes: list[forks.Forked]) -> list[int]:
    return [process.wait() for process in processes]


def wait_for_step(plan: Plan, attempt: int, step: int, process: forks.Forked) -> None:
    path = Path(plan.run_directory) / "attempts" / str(attempt) / "events-rank0.jsonl"
    deadline = time.monotonic() + 120
    while not path.exists() or path.read_text(encoding="utf-8").count("step_done") < step:
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_one_of_two_processes_killed_the_losses_are_those_of_the_unbroken_run(tmp_path: Path, dataset: Path) -> None:
    whole = make(tmp_path / "whole", dataset, nnodes=2, **TWO)
    assert wait(launch(whole, 1)) == [0, 0]
    broken = make(tmp_path / "broken", dataset, nnodes=2, **TWO)
    both = launch(broken, 1)
    wait_for_step(broken, 1, 3, both[0])
    both[1].kill()
    time.sleep(1)
    both[0].kill()  # as the agent does, unless it has noticed by itself
    codes = wait(both)
    assert codes[0] in (-signal.SIGKILL, RETRYABLE)
    assert codes[1] == -signal.SIGKILL
    left, _ = store.newest_intact(tmp_path / "broken")
    assert left is not None
    assert 2 <= left.step < STEPS
    assert wait(launch(broken, 2)) == [0, 0]
    expected, found = read_run(tmp_path / "whole").steps, read_run(tmp_path / "broken")
    assert found.attempts[-1].resumed_from == left.step
    assert list(found.steps.step) == list(expected.step) == list(range(1, STEPS + 1))
    assert list(found.steps.loss) == list(expected.loss)
    assert list(found.steps.grad_norm) == list(expected.grad_norm)
    newest, problems = store.newest_intact(tmp_path / "broken")
    assert newest is not None
    assert (newest.step, problems, store.verify(newest)) == (STEPS, [], [])


def test_a_dataset_that_is_cut_under_a_run_is_named(tmp_path: Path) -> None:
    prefix = make_dataset(tmp_path / "data" / "cut")
    plan = make(tmp_path / "run", prefix, backend="maxtext", train__steps=1_000_000)
    (process,) = launch(plan, 1)
    wait_for_step(plan, 1, 3, process)
    tokens = prefix.with_suffix(".bin")
    os.truncate(tokens, 200_000)
    assert process.wait() == FINAL
    events = (tmp_path / "run/attempts/1/events-rank0.jsonl").read_text(encoding="utf-8").splitlines()
    failure = json.loads(events[-1])
    assert failure["event"] == "rank_failed"
    assert f"{tokens}: became shorter while it was read: 200,000 of 400,000 bytes are left" in failure["error"]
    assert not failure["retryable"]
