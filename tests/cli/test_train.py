"""``train pretrain --dry-run``: the plan, and the very command that a run then executes."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Cli, processes_with, wait_for


def dry(cli: Cli, *more: str) -> str:
    done = cli("direct", "--nproc", "2", "--", "train", "pretrain", "--config", "trial.yaml", "--dry-run", *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_printed_command_is_the_one_that_runs(cli: Cli, trial: Path) -> None:
    (command,) = json.loads(dry(cli, "--json"))["commands"]
    process = cli.start(
        "direct", "--nproc", "2", "--", "train", "pretrain", "--config", "trial.yaml", "train.steps=9999"
    )
    wait_for(lambda: processes_with("primus.runtime.agents.agent "))
    wait_for(lambda: processes_with(str(trial.parent / "runs")))
    lines = [line for line in processes_with("primus.runtime.agents.agent").values() if str(trial.parent) in line]
    process.terminate()
    process.communicate(timeout=30)
    words = [word for word in command[1:] if "=" not in word or not word.split("=")[0].isupper()]
    token = words.index("--run-id") + 1
    assert lines[0].split()[: len(words)][:token] == words[:token]
    assert words[token] == "trial-1-TOKEN"


def test_the_plan_says_what_would_run(cli: Cli, trial: Path) -> None:
    text = dry(cli, "env.FLAVOUR=x y")
    assert "1 node x 2 devices (cpu)" in text
    assert "'FLAVOUR=x y'" in text
    assert str(trial.parent / "runs" / "trial" / "attempts" / "1") in text
    assert not (trial.parent / "runs").exists()


def test_an_import_path_of_ones_own_is_honoured_from_file_and_flag(cli: Cli, trial: Path) -> None:
    with trial.open("a") as file:
        file.write("env: {PYTHONPATH: /of/the/file}\n")
    for flags, expected in (((), "/of/the/file"), (("--env", "PYTHONPATH=/of/the/flag"), "/of/the/flag")):
        done = cli("direct", *flags, "--", "train", "pretrain", "--config", "trial.yaml", "--dry-run", "--json")
        (words,) = json.loads(done.stdout)["commands"]
        value = next(word for word in words if word.startswith("PYTHONPATH=")).partition("=")[2]
        assert value.split(":")[1] == expected
        assert Path(value.split(":")[0], "primus").is_dir()
    done = cli(*("direct", "--env", "PYTHONPATH=/of/the/flag", "--"), *("train", "pretrain", "--config", "trial.yaml"))
    assert done.returncode == 0, done.stderr


def test_a_dry_run_of_a_run_that_exists_plans_its_continuation(cli: Cli, trial: Path) -> None:
    assert cli("train", "pretrain", "--config", "trial.yaml").returncode == 0
    done = cli("train", "pretrain", "--config", "trial.yaml", "--dry-run", "train.steps=50", "--json")
    report = json.loads(done.stdout)
    assert report["plan"]["decay_steps"] == 5
    assert str(trial.parent / "runs/trial/attempts/2") in report["commands"][0]
    refused = cli("train", "pretrain", "--config", "trial.yaml", "--dry-run", "optimizer.lr=0.5")
    assert refused.returncode == 1
    assert "optimizer.lr" in refused.stderr


def test_the_backend_flag_is_an_override(cli: Cli, trial: Path) -> None:
    done = cli("train", "pretrain", "--config", "trial.yaml", "--backend", "nothing", "--dry-run")
    assert done.returncode == 2
    assert "there is no backend 'nothing'" in done.stderr
    assert "counting" in done.stderr
    empty = cli("train", "pretrain", "--config", "trial.yaml", "--backend", "", "--dry-run")
    assert empty.returncode == 2
    assert "'backend=' has no value" in empty.stderr


def test_the_runs_directory_is_chosen_by_flag_then_by_environment(cli: Cli, trial: Path) -> None:
    def place(*more: str, **env: str) -> str:
        done = cli("train", "pretrain", "--config", "trial.yaml", "--dry-run", "--json", *more, **env)
        directory: str = json.loads(done.stdout)["plan"]["run_directory"]
        return directory

    here = trial.parent
    assert place() == str(here / "runs/trial")
    assert place(PRIMUS_RUNS="/tmp/a") == "/tmp/a/trial"
    assert place("--runs-dir", "b", PRIMUS_RUNS="/tmp/a") == str(here / "b/trial")
