"""Monitoring from the command line: beside a run that goes on whatever becomes of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Cli, processes_with, wait_for
from told import look, notices

from primus.home import primus_home
from primus.runtime.monitoring import PATIENCE_SECONDS
from primus.runtime.run_directory import RunDirectory


def train(*more: str) -> list[str]:
    return ["train", "pretrain", "--config", "trial.yaml", *more]


@pytest.fixture
def monitored(cli: Cli, python: str) -> Cli:
    """A command line that finds the ``monitor`` environment made; steps take long enough for it to come up."""
    cli.env["PRIMUS_HOME"] = str(primus_home())
    cli.env["NETRC"] = os.environ["NETRC"]
    return cli


@pytest.fixture
def swallowing() -> Iterator[int]:
    """A port at which somebody listens and never says a word."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        yield listening.getsockname()[1]


def run_of(trial: Path) -> RunDirectory:
    return RunDirectory(trial.parent / "runs" / "trial")


def told(trial: Path, attempt: int = 1) -> list[str]:
    return notices(run_of(trial).attempt(attempt))


def test_it_dies_and_training_goes_on(monitored: Cli, trial: Path, swallowing: int) -> None:
    """Its port is taken, too."""
    run = monitored.start(
        *train(f"monitor.prometheus.port={swallowing}", "train.steps=100"), COUNTING_STEP_SECONDS="0.1"
    )
    wait_for(lambda: run_of(trial).attempts() and told(trial), seconds=120, what="the exporter")
    (said,) = told(trial)
    assert said == f"Prometheus: metrics at http://127.0.0.1:{swallowing + 1}/metrics (port {swallowing} is taken)"
    targets = json.loads(run_of(trial).path.with_name("prometheus-trial.json").read_text())
    assert targets == [{"targets": [f"127.0.0.1:{swallowing + 1}"]}]
    (pid,) = processes_with(f"primus.runtime.monitor {run_of(trial).path}")
    os.kill(pid, signal.SIGKILL)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    assert "monitoring was killed by SIGKILL; training goes on without it; its last words: " in out
    assert "complete: 100 steps" in out
    assert len(told(trial)) == 2


def test_an_exporter_that_never_came_up_is_not_waited_for(monitored: Cli, trial: Path) -> None:
    run = monitored.start(
        *train("monitor.prometheus.host=203.0.113.1", "train.steps=99999"), COUNTING_STEP_SECONDS="0.1"
    )
    wait_for(lambda: run_of(trial).attempts() and told(trial), seconds=120, what="its notice")
    assert told(trial)[0].startswith("Prometheus: OSError: [Errno 99] cannot listen on 203.0.113.1 port")
    run.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130, err
    assert time.monotonic() - asked < PATIENCE_SECONDS


def test_what_a_dead_store_lacks_is_said_and_sent_later(monitored: Cli, trial: Path, python: str) -> None:
    folder = trial.parent / "later"
    folder.write_text("in the way")
    there = f"monitor.mlflow.uri=sqlite:///{folder}/mlflow.db"
    first = monitored(*train(there, "train.steps=40"))
    assert first.returncode == 0, first.stderr
    assert "MLflow: steps 1 to 40 did not arrive" in first.stdout
    assert "they are sent when the same command is run again" in first.stdout

    folder.unlink()
    folder.mkdir()
    second = monitored(*train(there, "train.steps=40"))
    assert second.returncode == 0
    assert "trial is complete: 40 of 40 steps" in second.stdout
    assert "sending what did not arrive while the run went on" in second.stderr
    (run,) = look(python, "mlflow", f"sqlite:///{folder}/mlflow.db")
    assert [number for number, _, _ in run["metrics"]["train/loss"]] == list(range(1, 41))
    assert run["status"] == "FINISHED"

    third = monitored(*train(there, "train.steps=40"))
    assert "sending" not in third.stderr
    assert not (run_of(trial).path / "attempts" / "2").exists()


def test_a_killed_launcher_leaves_no_monitor_behind(monitored: Cli, trial: Path) -> None:
    run = monitored.start(*train("monitor.prometheus={}", "train.steps=9999"), COUNTING_STEP_SECONDS="0.1")
    wait_for(lambda: run_of(trial).attempts() and told(trial), seconds=120, what="the exporter")
    (pid,) = processes_with(f"primus.runtime.monitor {run_of(trial).path}")
    os.kill(pid, signal.SIGTERM)  # as Slurm sends it to every process of a job that is to save and end
    os.kill(pid, signal.SIGINT)
    time.sleep(0.5)
    assert pid in processes_with("primus.runtime.monitor")
    os.killpg(run.pid, signal.SIGKILL)
    wait_for(lambda: pid not in processes_with("primus.runtime.monitor"), what="its end")


def test_what_is_asked_for_and_cannot_be_had_is_an_error_before_training(cli: Cli, trial: Path) -> None:
    keyless = cli(*train("monitor.wandb.mode=online"), NETRC="/nonexistent")
    assert keyless.returncode == 1
    assert "there is no key for W&B" in keyless.stderr
    (cli.home / "blocked").write_text("")
    unmade = cli(*train("monitor.prometheus={}"), PRIMUS_HOME=str(cli.home / "blocked"))
    assert unmade.returncode == 1
    assert "the monitor environment cannot be made" in unmade.stderr
    assert not run_of(trial).path.exists()


def test_a_dry_run_imports_nothing_of_it(cli: Cli, trial: Path) -> None:
    every = ["monitor.prometheus={}", "monitor.mlflow={}", "monitor.wandb={}"]
    dry = cli(*train(*every, "--dry-run"), PYTHONPROFILEIMPORTTIME="1")
    assert dry.returncode == 0, dry.stderr
    imported = {line.rpartition("|")[2].strip() for line in dry.stderr.splitlines() if "|" in line}
    assert "primus.plan.planner" in imported
    assert not {name.partition(".")[0] for name in imported} & {"mlflow", "wandb", "prometheus_client", "sqlalchemy"}
    assert "monitor environment is not made yet" in dry.stdout
