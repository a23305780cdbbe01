"""Nothing is lost when a real Slurm takes nodes away, kills them, runs out of time or patience: the run goes on by
itself, its steps follow each other, and it avoids what failed. Faults are real: signals, drains, other jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

from command_line import Cli, processes_with, wait_for
from slurm_cluster import Cluster
from slurm_jobs import log, newest, record, run_of, stepping, submit, train

from primus.events.follow import read_run
from primus.runtime.jobs import JobDirectory

SLOW = ("train.steps=300", "checkpoint.interval=20")


def starts(run: Path) -> list[dict[str, object]]:
    return [entry for entry in JobDirectory(run / "jobs" / "1").record() if entry["event"] == "started"]


def started_again(cluster: Cluster, job: int, run: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while len(starts(run)) < 2:
        assert time.monotonic() < until, f"{cluster.show(job)}\n{cluster.run('sinfo', '-N', '-l')}\n{log(run)}"
        time.sleep(0.1)


def completed(cluster: Cluster, job: int, run: Path, seconds: float = 90) -> None:
    """The job came to its good end, and every step of the run is there once."""
    state = cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", seconds=seconds)
    assert state == "COMPLETED", log(run)
    history = read_run(run)
    assert history.status == "complete"
    assert list(history.steps.step) == list(range(1, 301))


def test_a_dead_node_is_left_out_and_the_run_goes_on(cli: Cli, cluster: Cluster, trial: Path) -> None:
    """It has all four nodes while they are there, and waits for no fourth when one has died: of three that are left it
    goes on with two, since a batch of eight cannot be split over three."""
    run = run_of(trial)
    queued = cli("slurm", "-N", "4", *train(*SLOW, "resilience.min_nodes=2"), COUNTING_STEP_SECONDS="0.03")
    assert "on 2 to 4 nodes" in queued.stdout, queued.stderr
    job = int(JobDirectory(run / "jobs" / "1").id)
    wait_for(lambda: newest(run) >= 20, 60)
    cluster.kill_node("n2")
    started_again(cluster, job, run)
    assert [entry["nodes"] for entry in starts(run)] == [["n1", "n2", "n3", "n4"], ["n1", "n3"]]
    assert "the job has 3 nodes; the run goes on with 2" in log(run)
    completed(cluster, job, run)
    assert record(run) == ["started", "again", "excluded", "started", "done"]
    assert json.loads((run / "excluded.json").read_text())["n2"]["reason"] == "it does not answer"
    assert "n2: it does not answer" in log(run)
    shown = cli("run", "show", "trial").stdout
    assert re.search(r"n1, n2, n3, n4 +0 +queued again: n2: it does not answer", shown), shown
    assert re.search(r"avoided until .*: n2: it does not answer", shown)
    more = cli("slurm", "-N", "2", "--hold", *train("train.steps=400"))
    assert "n2 is avoided: it does not answer" in more.stderr
    again = int(re.findall(r"Slurm job (\d+)", more.stdout)[0])
    assert cluster.show(again)["ExcNodeList"] == "n2"


def test_a_drained_node_is_left_after_a_save(cli: Cli, cluster: Cluster, trial: Path) -> None:
    """However long that takes: what ``--signal`` says is meant for a time limit."""
    run = run_of(trial)
    slow = {"COUNTING_STEP_SECONDS": "0.03", "COUNTING_SAVE_SECONDS": "4"}
    job = submit(cli, "-N", "2", "--signal=@2", *train("train.steps=300", "checkpoint.interval=1000"), **slow)
    wait_for(lambda: stepping(run), 60)
    cluster.run("scontrol", "update", "nodename=n1", "state=drain", "reason=health check: fan stuck")
    started_again(cluster, job, run)
    assert newest(run) == starts(run)[1]["step"] > 0
    completed(cluster, job, run)
    assert record(run) == ["started", "excluded", "again", "started", "done"]
    assert "n1 was drained: health check: fan stuck: the run saves" in log(run)
    assert "n1" not in starts(run)[1]["nodes"]


def test_a_preempted_run_makes_way_and_comes_back(cli: Cli, cluster: Cluster, trial: Path) -> None:
    run = run_of(trial)
    job = submit(cli, "-N", "4", *train(*SLOW), COUNTING_STEP_SECONDS="0.03")
    wait_for(lambda: stepping(run), 60)
    cluster.run("srun", "-p", "urgent", "-N", "4", "--exclusive", "sleep", "1")
    completed(cluster, job, run)
    assert record(run) == ["started", "left", "started", "done"]
    assert starts(run)[1]["step"] > 0  # it had saved


def test_a_run_that_hangs_when_slurm_takes_it_starts_again_at_once(cli: Cli, cluster: Cluster, trial: Path) -> None:
    """As ranks do that wait for a node without power: they, and what watches over them, are killed, not ended."""
    run = run_of(trial)
    job = submit(cli, "-N", "1", *train(*SLOW), COUNTING_FAULT="hang:0:20")
    wait_for((run / "fault-happened").exists, 60)
    cluster.run("scontrol", "requeue", str(job))
    started_again(cluster, job, run)


def test_at_the_time_limit_it_saves_and_is_queued_again(cli: Cli, cluster: Cluster, trial: Path) -> None:
    run = run_of(trial)
    job = submit(cli, "-N", "1", "--time=10", "--signal=@110", *train("train.steps=100000"))
    wait_for(lambda: stepping(run), 60)
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # 110 s before its end may be now, and soon is
    started_again(cluster, job, run, 90)
    assert newest(run) >= starts(run)[1]["step"] > 0
    assert "the time limit was near: the run saves" in log(run)
    assert record(run) == ["started", "again", "started"]


def test_starts_that_bring_nothing_come_to_an_end(cli: Cli, cluster: Cluster, trial: Path) -> None:
    """Agents that die again and again are started again, but not for ever."""
    run = run_of(trial)
    job = submit(cli, "-N", "1", *train("train.steps=100000"))
    for attempt in (1, 2, 3):
        wait_for(lambda attempt=attempt: stepping(run, attempt), 60)
        for pid in processes_with(f"primus.runtime.agents.agent {run}/attempts/{attempt}"):
            os.kill(pid, signal.SIGKILL)
    assert cluster.wait(job, "FAILED", "COMPLETED", "CANCELLED", seconds=60) == "FAILED"
    assert "the processes around the ranks died; and 3 starts have brought no newer checkpoint" in log(run)
