"""What becomes of a Slurm job when a start of it has ended, and which nodes it avoids: decided without Slurm."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM
from threading import Thread

import pytest

from primus.errors import RunDirectoryError
from primus.runtime.jobs import Ending, Start
from primus.runtime.node import _outlast, clocks, free_port, resolves
from primus.runtime.slurm.again import EXCLUDED_SECONDS, Facts, decide, exclude, excluded
from primus.runtime.supervise import Interrupts


@pytest.mark.parametrize(
    ("facts", "what", "reason"),
    [
        (Facts(codes={0: 0, 1: 0}, lost={}), "done", "complete"),
        (Facts(codes={0: 0}, lost={"n2": "silent"}, status=137), "done", "complete"),  # it died after the end
        (Facts(codes={0: 143, 1: 143}, lost={}, state="CANCELLED"), "stopped", "cancelled"),
        (Facts(codes={0: 143}, lost={}, restarted=True, preempted=True), "left", "preempted"),
        (Facts(codes={0: 1}, lost={}, restarted=True), "left", "Slurm took its nodes"),
        (Facts(codes={0: 1}, lost={"n2": "it does not answer"}, status=1), "again", "n2: it does not answer"),
        (Facts(codes={0: 130, 1: 130}, lost={}, asked="the time limit was near"), "again", "the time limit"),
        (Facts(codes={0: 143, 1: 143}, lost={}, preempted=True), "again", "preempted"),  # within its grace time
        (Facts(codes={0: 1, 1: 75}, lost={}, broken=True, status=1), "failed", "its screen"),
        (Facts(codes={0: 75, 1: 75}, lost={}, broken=True, status=75), "again", "around the ranks died"),
        (Facts(codes={0: 143}, lost={}), "stopped", "signal 15"),
        (Facts(codes={}, lost={}, status=137), "again", "killed"),
        (Facts(codes={}, lost={}, status=2), "failed", "ended with 2"),
        (Facts(codes={}, lost={}), "failed", "ended with 0"),
    ],
)
def test_only_what_was_not_the_runs_doing_is_started_again(facts: Facts, what: str, reason: str) -> None:
    decision = decide(facts)
    assert decision.what == what
    assert reason in decision.reason


def test_nodes_are_avoided_for_a_day(tmp_path: Path) -> None:
    assert excluded(tmp_path) == []
    usable = {"n1", "n2", "n3", "n4"}
    assert exclude(tmp_path, {"n1": "drained: fan"}, usable, 2)
    assert exclude(tmp_path, {"n2": "it does not answer"}, usable, 2)
    assert not exclude(tmp_path, {"n3": "n1 and n2 are avoided already"}, usable, 2)
    first, second = excluded(tmp_path)
    assert (first.node, first.reason, second.node) == ("n1", "drained: fan", "n2")
    assert first.until - first.since == EXCLUDED_SECONDS
    assert [entry.node for entry in excluded(tmp_path, first.until + 0.001)] in ([], ["n2"])
    (tmp_path / "excluded.json").write_text('["of another program"]')
    assert excluded(tmp_path) == []


def test_nodes_that_do_not_see_each_other_are_named(tmp_path: Path) -> None:
    start = Start(tmp_path / "starts" / "0")
    with pytest.raises(RunDirectoryError, match=r"node n2 sees what these nodes write: n2; .*nothing of number 0, 2"):
        start.meet(1, "n2", 3, patience=0.3)
    Start(tmp_path / "starts" / "0").directory.joinpath("seen-0.json").write_text('{"node": "n1", "skew": 0.0}')
    seen = start.meet(1, "n2", 2, patience=5)
    assert {said["node"] for said in seen.values()} == {"n1", "n2"}
    assert abs(seen[1]["skew"]) < 2


def test_a_launcher_outlasts_a_lost_first_node_only(tmp_path: Path) -> None:
    """Until Slurm's signal comes. A first node that lives, or has ended by itself, has its batch step."""
    start, interrupts = Start(tmp_path), Interrupts()
    start.beat(0, 1)

    def outlasting(then: Callable[[], object]) -> bool:
        thread = Thread(target=_outlast, args=(start, interrupts), daemon=True)
        thread.start()
        thread.join(0.5)
        stayed = thread.is_alive()
        then()
        thread.join(5)
        return stayed and not thread.is_alive()

    assert outlasting(lambda: start.beat(0, 2))
    assert outlasting(lambda: interrupts._take(SIGTERM, None))
    interrupts.count = 0
    assert outlasting(lambda: start.end(0, Ending("n1", 1)))
    assert not outlasting(lambda: None)  # it had ended before


def test_clocks_that_are_apart_are_said() -> None:
    seen = {0: {"node": "n1", "skew": -0.5}, 1: {"node": "n2", "skew": 11.6}}
    assert clocks(seen).startswith("the clocks of n2 and n1 are 12.1 s apart")
    assert clocks({0: {"node": "n1", "skew": 100.0}, 1: {"node": "n2", "skew": 101.0}}) == ""


def test_ports_follow_from_the_job_and_are_free() -> None:
    import socket

    first = free_port(4711)
    with socket.socket() as taken:
        taken.bind(("", first))
        taken.listen()
        assert free_port(4711) != first
    assert resolves("localhost")
    assert not resolves("no-such-host.invalid")


def test_a_torn_file_of_another_node_is_not_there_yet(tmp_path: Path) -> None:
    start = Start(tmp_path)
    (tmp_path / "ended-0.json").write_text(json.dumps({"node": "n1"})[:-3])
    assert start.endings(2) == {}
    assert start.owner() is None
