"""Runs as jobs of a real Slurm: they train, fail, are refused, stopped. The engine counts; one test trains for real."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest
from command_line import ROOT, Cli, processes_with, wait_for
from slurm_cluster import Cluster
from slurm_jobs import log, newest, record, run_of, stepping, submit, train

from primus.events.follow import read_run


@pytest.mark.parametrize(("backend", "export"), [("counting", "NONE"), ("counting_torchrun", "ALL")])
def test_two_nodes_train_as_one_job(cli: Cli, cluster: Cluster, trial: Path, backend: str, export: str) -> None:
    job = submit(cli, "sbatch", "-N", "2", f"--export={export}", *train(f"backend={backend}"))
    assert cluster.wait(job, "COMPLETED", "FAILED") == "COMPLETED", log(run_of(trial))
    history = read_run(run_of(trial))
    assert history.status == "complete"
    assert list(history.steps.step) == [1, 2, 3, 4, 5]
    names = {path.name for path in (run_of(trial) / "attempts/1").glob("events-rank*.jsonl")}
    assert names == {"events-rank0.jsonl", "events-rank1.jsonl"}
    assert log(run_of(trial)).count("complete: 5 steps in") == 1  # what all nodes say is said once
    assert record(run_of(trial)) == ["started", "done"]
    shown = cli("run", "show", "trial").stdout
    assert re.search(rf"Slurm job {job}: completed; .*\n.*\n.*n1, n2 +0 +complete", shown), shown
    assert "complete: 5 steps" in cli("run", "logs", "trial", "--job").stdout
    again = cli("slurm", "-N", "2", *train(f"backend={backend}", "--runs-dir", "runs"), PRIMUS_RUNS="elsewhere").stdout
    assert "trial is complete: 5 of 5 steps" in again
    assert f"run show trial --runs-dir {run_of(trial).parent}\n" in again


def test_in_the_foreground_ctrl_c_saves_and_ends_it(cli: Cli, cluster: Cluster, trial: Path) -> None:
    process = cli.start("slurm", "srun", "-N2", *train("train.steps=100000"))
    wait_for(lambda: stepping(run_of(trial)), 60)
    assert "stays with it in the foreground" in cli("slurm", "-N2", *train("train.steps=100000"), timeout=20).stderr
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"stopped after step {newest(run_of(trial)):,}" in out
    assert "slurm srun -N2 -- train pretrain" in out
    assert not processes_with(str(run_of(trial)))


def test_in_the_foreground_it_can_be_ended_before_it_trains(cli: Cli, cluster: Cluster, trial: Path) -> None:
    process = cli.start("slurm", "srun", "-N2", *train())
    wait_for((run_of(trial) / "jobs/1/starts/0").exists, 60)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert "error: " not in err.replace("srun: error: ", "").replace("slurmstepd-n1: error: ", "")


def test_a_final_failure_fails_the_job_and_shows_in_its_log(cli: Cli, cluster: Cluster, trial: Path) -> None:
    job = submit(cli, "-N", "2", *train("train.steps=100000"), COUNTING_FAULT="nan!:1:20")
    assert cluster.wait(job, "COMPLETED", "FAILED") == "FAILED"
    assert "the loss is NaN" in log(run_of(trial))
    assert record(run_of(trial)) == ["started", "failed"]
    assert cluster.show(job)["Restarts"] == "0"


def test_scancel_saves_and_does_not_queue_again(cli: Cli, cluster: Cluster, trial: Path) -> None:
    job = submit(cli, "-N", "2", *train("train.steps=100000"))
    wait_for(lambda: stepping(run_of(trial)), 60)
    cluster.run("scancel", str(job))
    assert cluster.wait(job, "CANCELLED", "PENDING", "COMPLETED", "FAILED") == "CANCELLED"
    wait_for(lambda: record(run_of(trial))[-1] == "stopped", 60)
    assert newest(run_of(trial)) > 0
    assert cluster.show(job)["Restarts"] == "0"


def test_a_run_that_waits_or_runs_is_not_submitted_again(cli: Cli, cluster: Cluster, trial: Path) -> None:
    job = submit(cli, "--hold", "-N", "2", *train())
    again = cli("slurm", "-N", "2", *train())
    assert again.returncode == 1
    assert f"this run is Slurm job {job} already: pending (JobHeldUser)" in again.stderr
    assert not (run_of(trial) / "jobs" / "2").exists()
    assert "queued (JobHeldUser)" in cli("run", "list").stdout
    assert f"Slurm job {job}: pending (JobHeldUser)" in cli("run", "show", "trial").stdout
    assert json.loads(cli("run", "show", "trial", "--json").stdout)["job"]["state"] == "pending"
    silent = cli("run", "logs", "trial", "--job")
    assert (silent.returncode, f"nothing yet: Slurm job {job}: pending" in silent.stderr) == (2, True)
    assert "what its job printed: --job" in cli("run", "logs", "trial").stderr
    cluster.run("scancel", str(job))
    assert f"Slurm job {job}: cancelled" in cli("run", "show", "trial").stdout
    assert "cancelled" in cli("run", "list").stdout


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--bogus"], "unrecognized option '--bogus'"),
        (["-p", "nowhere"], "invalid partition specified: nowhere"),
        (["--gpus-per-node=99"], "Requested node configuration is not available"),
        (["srun", "-p", "nowhere"], "srun has started nothing; the words above are Slurm's"),
    ],
)
def test_what_slurm_refuses_is_said_in_its_words(
    cli: Cli, cluster: Cluster, trial: Path, flags: list[str], said: str
) -> None:
    refused = cli("slurm", *flags, "-N", "2", *train())
    assert refused.returncode == 1
    assert said in refused.stderr
    assert not run_of(trial).exists()


def test_a_full_disk_is_said_and_leaves_no_run_behind(cli: Cli, cluster: Cluster, trial: Path) -> None:
    command = ["prlimit", "--fsize=10", str(ROOT / "primus-cli"), "slurm", *train()]
    done = subprocess.run(command, cwd=cli.home, env=cli.environment(), capture_output=True, text=True, check=False)
    assert (done.returncode, "cannot write here: File too large" in done.stderr) == (1, True), done.stderr
    assert not run_of(trial).exists()


def test_what_slurm_queues_but_will_never_start_is_said(cli: Cli, cluster: Cluster, trial: Path) -> None:
    queued = cli("slurm", "-N", "8", "-o", "x.log", *train())
    assert queued.returncode == 0
    assert re.search(r"\(Partition\w+\): it asks for more nodes", queued.stderr)
    assert "where --output says: x.log" in cli("run", "logs", "trial", "--job").stderr


def test_a_directory_that_is_not_on_every_node_is_named(cli: Cli, cluster: Cluster, trial: Path) -> None:
    """What happens on a node that does not have the file system of the others: its files are not there."""
    job = submit(cli, "--hold", "-N", "2", *train())
    (run_of(trial) / "jobs/1/plan.json").unlink()
    cluster.run("scontrol", "release", str(job))
    assert cluster.wait(job, "COMPLETED", "FAILED") == "FAILED"
    assert "node n1 does not see the job's files" in log(run_of(trial))


def test_without_slurm_it_says_so(cli: Cli, trial: Path, tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env"):
        (tools / name).symlink_to(f"/bin/{name}")
    done = cli("slurm", "-N", "2", *train(), PATH=str(tools))
    assert done.returncode == 1
    assert "Slurm is not installed here: there is no sbatch on PATH" in done.stderr
