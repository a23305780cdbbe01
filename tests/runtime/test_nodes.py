"""Several nodes, started by hand: two launchers on this machine that share the run directory."""

from __future__ import annotations

import re
import signal
import socket
import time
from pathlib import Path

import pytest
from command_line import Cli, processes_with, wait_for

from primus.errors import LaunchError
from primus.events.follow import read_run
from primus.runtime.agents import starts
from primus.runtime.agents.agent import Task
from primus.runtime.supervise import LAST_WORD_SECONDS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def words(rank: int, port: int, *more: str) -> list[str]:
    place = ["direct", "--nnodes", "2", "--node-rank", str(rank), "--rdzv", f"127.0.0.1:{port}"]
    return [*place, "--", "train", "pretrain", "--config", "trial.yaml", *more]


def run_of(trial: Path) -> Path:
    return trial.parent / "runs" / "trial"


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_two_nodes_train_together(cli: Cli, trial: Path, backend: str) -> None:
    port = free_port()
    second = cli.start(*words(1, port, f"backend={backend}"))
    first = cli.start(*words(0, port, f"backend={backend}"))
    out, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert "starting 1 process as node 0 of 2" in out
    out, err = second.communicate(timeout=60)
    assert second.returncode == 0, err
    names = {path.name for path in (run_of(trial) / "attempts/1").glob("events-rank*.jsonl")}
    assert names == {"events-rank0.jsonl", "events-rank1.jsonl"}
    assert read_run(run_of(trial)).status == "complete"


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_a_failure_on_one_node_ends_the_other(cli: Cli, trial: Path, backend: str) -> None:
    port = free_port()
    more = (f"backend={backend}", "train.steps=100000")
    both = [cli.start(*words(rank, port, *more), COUNTING_FAULT="nan!:1:20") for rank in (0, 1)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [1, 1]
    for err in said:
        assert re.search(r"rank 1 on \S+ failed", err)
        assert "the loss is NaN" in err
    assert not processes_with(str(run_of(trial)))


def test_a_stop_reaches_the_ranks_of_its_own_node(cli: Cli, trial: Path) -> None:
    port = free_port()
    both = [cli.start(*words(rank, port, "train.steps=100000")) for rank in (0, 1)]
    wait_for((run_of(trial) / "attempts/1/events-rank0.jsonl").exists)
    wait_for(lambda: "step_done" in (run_of(trial) / "attempts/1/events-rank0.jsonl").read_text())
    both[1].send_signal(signal.SIGINT)
    asked = time.monotonic()
    out, err = both[1].communicate(timeout=60)
    assert time.monotonic() - asked < LAST_WORD_SECONDS
    assert both[1].returncode == 130, err
    assert "stopped after step" in out
    assert both[0].returncode is None or both[0].returncode == 0
    both[0].send_signal(signal.SIGINT)  # this backend does not agree on a stop across ranks, as an engine does
    both[0].communicate(timeout=60)


def test_a_node_that_is_there_twice_is_refused_and_the_run_goes_on(cli: Cli, trial: Path) -> None:
    port = free_port()
    first, second = (cli.start(*words(rank, port, "train.steps=8"), COUNTING_STEP_SECONDS="0.5") for rank in (0, 1))
    wait_for(lambda: "step_done" in events(trial))
    again = cli(*words(1, port, "train.steps=8"))
    assert again.returncode == 1
    said = " ".join(again.stderr.split())
    assert re.search(rf"has a node 1 already: process {second.pid} on \S+, since .*, is running here", said)
    for process in (first, second):
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert read_run(run_of(trial)).attempts[-1].restarts == 0


def events(trial: Path) -> str:
    path = run_of(trial) / "attempts/1/events-rank0.jsonl"
    return path.read_text() if path.exists() else ""


def test_nodes_that_do_not_come_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "MEETING_SECONDS", 0.2)
    task = Task(tmp_path, "plain", nproc=1, nnodes=4, node_rank=2, rdzv="", run_id="", max_restarts=0, restart_window=1)
    with pytest.raises(LaunchError, match=r"1 of 4 nodes are here after 0 s; still missing: 0, 1, 3"):
        starts.Starts(task).meet()


def test_another_experiment_on_the_second_node_is_refused(cli: Cli, trial: Path) -> None:
    port = free_port()
    first = cli.start(*words(0, port))
    second = cli(*words(1, port, "optimizer.lr=0.5"))
    assert second.returncode == 1
    assert "the experiment of this node is not the one of node 0" in second.stderr
    assert "optimizer.lr" in second.stderr
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)


def test_another_number_of_nodes_is_refused(cli: Cli, trial: Path) -> None:
    port = free_port()
    first = cli.start(*words(0, port))
    other = [word if word != "2" else "4" for word in words(1, port)]
    second = cli(*other)
    assert second.returncode == 1
    assert "runs on 2 nodes, this node was told --nnodes 4" in second.stderr
    first.send_signal(signal.SIGINT)  # it waits for a node that never comes: there is nothing to save
    first.communicate(timeout=30)
    assert first.returncode == 130
    assert not processes_with(str(run_of(trial)))


def test_what_a_dead_run_left_is_not_joined(cli: Cli, trial: Path) -> None:
    """The second node waits for a living node 0, however convincing an old lock file looks."""
    port = free_port()
    killed = cli.start(*words(0, port))
    wait_for((run_of(trial) / "attempts/1/plan.json").exists)
    wait_for(lambda: '"attempt": 1' in (run_of(trial) / "lock").read_text())
    killed.kill()
    killed.communicate()
    second = cli.start(*words(1, port))
    with pytest.raises(Exception, match="timed out"):
        second.communicate(timeout=6)
    second.kill()
    second.communicate()
    assert not processes_with(str(run_of(trial)))
