"""Nodes that cannot meet say so at once; clocks that are apart change nothing; a node that is left alone ends."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest
from command_line import PLUGINS, Cli
from gang import free_port

from primus.errors import LaunchError
from primus.events.follow import read_run
from primus.launch.direct import Direct
from primus.runtime import meeting
from primus.runtime.lock import RunLock
from primus.runtime.meeting import FirstNode, check_meeting


def words(rank: int, rdzv: str, *more: str) -> list[str]:
    place = ["direct", "--nnodes", "2", "--node-rank", str(rank), "--rdzv", rdzv]
    return [*place, "--", "train", "pretrain", "--config", "trial.yaml", *more]


def test_a_port_that_is_taken_is_said_at_once(cli: Cli, trial: Path) -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]
        began = time.monotonic()
        done = cli(*words(0, f"127.0.0.1:{port}"))
    assert done.returncode == 1
    assert f"port {port} is taken on this machine" in done.stderr
    assert "give another port on every node" in done.stderr
    assert time.monotonic() - began < 10
    assert not (trial.parent / "runs/trial/attempts").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_name_that_nobody_knows_is_said_soon(cli: Cli, trial: Path, rank: int) -> None:
    done = cli(*words(rank, "no-such-node.invalid:29400"), timeout=30)
    assert done.returncode == 1
    assert "this machine knows no address of no-such-node.invalid" in done.stderr
    assert "getent hosts" in done.stderr


def test_odd_meeting_points() -> None:
    with pytest.raises(LaunchError, match="knows no address"):
        check_meeting(Direct(nnodes=2, rdzv=f"{'a' * 70}.x:1"), 0.0)
    with pytest.raises(LaunchError, match="cannot be used"):
        check_meeting(Direct(nnodes=2, rdzv="localhost:99999"), 0.0)
    check_meeting(Direct(nnodes=2, rdzv=f"[127.0.0.1]:{free_port()}"), 0.0)
    check_meeting(Direct(), 0.0)


def test_a_first_node_that_has_gone_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meeting, "LOOK_SECONDS", 0.0)
    monkeypatch.setattr(meeting, "STALE_SECONDS", 0.5)
    lock = RunLock(tmp_path)
    first = FirstNode(tmp_path, lock.owner.token)
    for number in range(8):
        os.utime(tmp_path / "lock", (number, number))  # its clock is decades behind
        first.check()
        time.sleep(0.1)
    lock.release()

    def watch() -> None:
        while True:
            time.sleep(0.05)
            first.check()

    with pytest.raises(LaunchError, match="node 0 has left this attempt"):
        watch()


@pytest.mark.parametrize("backend", ["counting", "counting_torchrun"])
def test_nodes_whose_clocks_are_an_hour_apart_train_together(
    cli: Cli, trial: Path, tmp_path: Path, backend: str
) -> None:
    """The second node's Python is an hour behind, in its launcher, its agent and its rank. A rank is lost, too."""
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "sitecustomize.py").write_text(
        "import datetime, time\n"
        "_now = time.time\n"
        "time.time = lambda: _now() - 3600\n"
        "class Late(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None):\n"
        "        return super().now(tz) - datetime.timedelta(hours=1)\n"
        "datetime.datetime = Late\n"
    )
    rdzv = f"127.0.0.1:{free_port()}"
    more = (f"backend={backend}", "resilience.max_restarts=1", "resilience.hang_timeout=5s", "checkpoint.interval=1")
    variables = {"COUNTING_COUPLED": "1", "COUNTING_FAULT": "SIGKILL:1:3", "COUNTING_STEP_SECONDS": "0.1"}
    late = cli.start(*words(1, rdzv, *more), **variables, PYTHONPATH=f"{PLUGINS}:{tmp_path / 'late'}")
    first = cli.start(*words(0, rdzv, *more), **variables)
    for process in (first, late):
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    history = read_run(trial.parent / "runs/trial")
    assert list(history.steps.step) == [1, 2, 3, 4, 5]
    assert history.attempts[-1].restarts == 1
