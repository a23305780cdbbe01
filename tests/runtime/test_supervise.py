"""The launching process with what it can meet: words that come late or never, a suspended job, a hang that cannot be
ended. Agents here are small shell commands, records are real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import ROOT

from primus.config.load import load
from primus.errors import RunDirectoryError
from primus.events.bus import Bus
from primus.events.jsonl import decode, file_of
from primus.events.types import RunEnded
from primus.launch.direct import Command
from primus.plan.planner import make_plan
from primus.runtime import patience, supervise
from primus.runtime.outcome import Outcome
from primus.runtime.run_directory import Attempt
from primus.runtime.supervise import Interrupts, Supervisor

RUN_STARTED = {"event": "run_started", "writer": "rank0"}
STEP_DONE = {"event": "step_done", "writer": "rank0", "step": 3, "seconds": 0.1}
COMPLETE = {"event": "run_ended", "writer": "rank0", "reason": "complete", "step": 5}


def again(writer: str, restart: int = 1) -> dict[str, Any]:
    return {"event": "ranks_started", "writer": writer, "restart": restart}


def failed(rank: int) -> dict[str, Any]:
    return {"event": "rank_failed", "writer": f"rank{rank}", "rank": rank, "error": "Connection closed by peer"}


@pytest.fixture
def attempt(trial: Path) -> Attempt:
    made = Attempt(trial.parent / "runs/trial/attempts/1", 1)
    made.logs.mkdir(parents=True)
    return made


@pytest.fixture
def watcher(trial: Path, attempt: Attempt) -> Callable[..., Supervisor]:
    def make(node: int = 0, nodes: int = 2, beat: Callable[[], None] = lambda: None, **topology: int) -> Supervisor:
        experiment = load(trial, ["backend=torchtitan", "resilience.hang_timeout=1s"])
        plan = make_plan(experiment, run_directory=trial.parent / "runs/trial")
        shape = plan.topology.model_copy(update={"nnodes": nodes, **topology})
        return Supervisor(plan.model_copy(update={"topology": shape}), attempt, beat, node)

    return make


def run(watched: Supervisor, script: str) -> Outcome:
    return watched.run(Command(("sh", "-c", script), {}), dict(os.environ), Interrupts())


def said(attempt: Attempt, writer: str) -> list[dict[str, Any]]:
    return [record for line in file_of(attempt.directory, writer).read_bytes().splitlines() if (record := decode(line))]


def test_another_nodes_late_word_of_a_start_does_not_end_training(watcher: Callable[..., Supervisor]) -> None:
    watched = watcher()
    for record in (again("node0"), RUN_STARTED, again("node1")):
        watched.story.take(record)
    assert watched.story.training
    watched.story.take(again("node1", 2))
    assert not watched.story.training
    watched.story.take(STEP_DONE)
    assert watched.story.training


def test_each_replica_group_has_starts_of_its_own(watcher: Callable[..., Supervisor]) -> None:
    watched = watcher(nodes=1, replica_groups=2)
    for record in (failed(0), again("node0-group0"), failed(1), again("node0-group1")):
        watched.story.take(record)
    assert [failure["rank"] for failure in watched.story.earlier] == [0, 1]
    assert not watched.story.outcome.failures


@pytest.mark.parametrize(("code", "reason"), [(0, "complete"), (75, "failed")])
def test_what_an_ended_start_says_after_the_next_has_begun_fails_nothing(
    watcher: Callable[..., Supervisor], attempt: Attempt, code: int, reason: str
) -> None:
    watched = watcher()
    for record in (again("node0"), RUN_STARTED, failed(1), COMPLETE):
        watched.story.take(record)
    watched._conclude(code, attempt.logs / "agent-0.log", Interrupts())
    assert watched.story.outcome.reason == reason


@pytest.mark.parametrize("reason", ["stopped", "complete"])
def test_another_node_waits_for_the_first_ones_last_word(
    watcher: Callable[..., Supervisor], attempt: Attempt, reason: Any
) -> None:
    calls = []

    def beat() -> None:
        calls.append(1)
        if len(calls) == 6:  # its own ranks have long ended
            with Bus(attempt.directory, "rank0") as bus:
                bus.emit(RunEnded(reason=reason, step=4))

    outcome = run(watcher(1, beat=beat), "exit 0")
    assert (outcome.reason, outcome.step) == (reason, 4)
    assert [record["event"] for record in said(attempt, "launcher1")] == ["attempt_started"]


def test_without_that_word_it_claims_nothing(
    watcher: Callable[..., Supervisor], attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "LAST_WORD_SECONDS", 0.2)
    assert run(watcher(1), "exit 0").reason == "complete"
    assert [record["event"] for record in said(attempt, "launcher1")] == ["attempt_started"]


@pytest.mark.parametrize("word", [failed(0), {**COMPLETE, "writer": "launcher0", "reason": "failed"}])
def test_ranks_that_are_done_do_not_make_up_for_another_nodes(
    watcher: Callable[..., Supervisor], attempt: Attempt, word: dict[str, Any]
) -> None:
    """Nor may the first node wait for this one to start again."""
    watched = watcher(1)
    for record in (RUN_STARTED, word):
        watched.story.take(record)
    watched._conclude(0, attempt.logs / "agent-1.log", Interrupts())
    assert (watched.story.outcome.reason, watched.story.outcome.elsewhere) == ("failed", True)
    assert said(attempt, "launcher1")[-1]["reason"] == "failed"


def test_a_deleted_run_is_none_on_other_nodes_either(watcher: Callable[..., Supervisor], attempt: Attempt) -> None:
    outcome = run(watcher(1), f"rm -r '{attempt.directory}'")
    assert outcome.reason == "failed"
    assert "was deleted or moved" in outcome.agent


def test_a_suspended_job_does_not_hang(
    watcher: Callable[..., Supervisor], attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "AWAY_SECONDS", 0.5)
    away = [1.5]
    watched = watcher(nodes=1, beat=lambda: time.sleep(away.pop() if away else 0))
    watched.story.take(STEP_DONE)
    outcome = run(watched, "sleep 2")
    assert [record["event"] for record in said(attempt, "launcher0")] == ["attempt_started", "run_ended"]
    assert "the agent exited with code 0" in outcome.agent, "a signal for a hang would have ended it"


def test_a_hang_that_cannot_be_ended_is_said_once_and_fails(
    watcher: Callable[..., Supervisor], attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "MENDED_SECONDS", 0.5)
    watched = watcher(nodes=1)
    watched.story.patience.start = 0.3
    began = time.monotonic()
    outcome = run(watched, "trap '' USR1 USR2; exec sleep 10")
    assert time.monotonic() - began < 5
    assert outcome.reason == "failed"
    assert outcome.elsewhere, "a batch system may start it on other nodes"
    (failure,) = outcome.failures
    assert failure["cause"] == "hang"
    kinds = [record["event"] for record in said(attempt, "launcher0")]
    assert kinds == ["attempt_started", "rank_failed", "notice", "run_ended"]


@pytest.mark.parametrize(("after", "reason"), [((again("node0"),), "stopped"), ((), "failed")])
def test_a_stop_while_ranks_start_again_is_a_stop(
    watcher: Callable[..., Supervisor], attempt: Attempt, after: Any, reason: str
) -> None:
    watched, interrupts = watcher(nodes=1), Interrupts()
    interrupts.count, interrupts.first = 1, signal.SIGTERM
    for record in (failed(0), *after):
        watched.story.take(record)
    watched._conclude(-signal.SIGKILL, attempt.logs / "agent-0.log", interrupts)
    assert watched.story.outcome.reason == reason


def test_a_run_that_lost_its_directory_to_another_writes_nothing_there(
    watcher: Callable[..., Supervisor], attempt: Attempt
) -> None:
    def beat() -> None:
        raise RunDirectoryError("process 7 on n1 has started a run here")

    with pytest.raises(RunDirectoryError):
        run(watcher(nodes=1, beat=beat), "exec sleep 30")
    assert [record["event"] for record in said(attempt, "launcher0")] == ["attempt_started"]


def test_what_the_agent_says_is_on_the_disk_when_it_ends(trial: Path) -> None:
    """Its worker finds no plan, so it reports a death of its own."""
    watched = (
        "import os; real = os.fsync\n"
        "def fsync(file): print(os.readlink(f'/proc/self/fd/{file}'), flush=True); real(file)\n"
        "os.fsync = fsync\n"
        "from primus.runtime.agents.agent import main; main()"
    )
    attempt = trial.parent / "attempt"
    (attempt / "logs").mkdir(parents=True)
    options = [str(attempt), "--processes", "plain", "--nproc", "1", "--run-id", "x"]
    done = subprocess.run(
        [sys.executable, "-c", watched, *options],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert [record["event"] for record in said(Attempt(attempt, 1), "node0")] == ["ranks_started", "rank_failed"]
    assert done.stdout.split() == [str(file_of(attempt, "node0"))], done.stderr
