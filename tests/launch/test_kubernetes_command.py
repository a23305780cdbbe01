"""``primus-cli kubernetes``: what it refuses, what it writes, what kubectl says where there is no cluster, and that
what the pods are told to run trains."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_line import ROOT, Cli, wait_for
from system import need

TRAIN = ("train", "pretrain", "--config", "trial.yaml")
POD = ("kubernetes", "--image", "primus:1", "--user", "1000")


def problems(cli: Cli, *flags: str, command: tuple[str, ...] = TRAIN) -> str:
    done = cli("kubernetes", *flags, "--", *command)
    assert done.returncode == 2, done.stderr
    return " ".join(done.stderr.split())


def test_everything_wrong_is_said_at_once(cli: Cli, trial: Path) -> None:
    flags = (
        "-N 2 --kind job --namespace Team_A --queue q! --user 0 --volume data --volume Data:/data --volume a:/dev/shm "
        "--volume a:/x --volume b:/x/ --env 1X=2 --env HF_TOKEN=abc --env A=secret:hub --env PRIMUS_RDZV=a:1 "
        "--env B=1 --env B=2 --cpu many --memory 64GB --shm-size 512m --resource gpu=1 --resource amd.com/gpu=8 "
        "--topology rack --node-selector gpu --toleration gpu:Never --service-account A --grace-period 10"
    )
    said = problems(cli, *flags.split())
    assert "24 problems" in said
    for expected in (
        "--image the pods need an image",
        "--kind job is for one node, not 2",
        "--namespace Team_A is not a name that Kubernetes takes",
        "--queue q! is not a name",
        "--user 0 is not UID[:GID]",
        "--volume data is not SOURCE:PATH[:ro]",
        "--volume Data:/data 'Data' is neither a claim nor a directory",
        "--volume a:/dev/shm would hide what a pod needs in /dev/shm",
        "--volume b:/x/ another volume is mounted at /x too",
        "--env 1X=2 is not NAME=VALUE",
        "--env HF_TOKEN looks like a secret",
        "--env A=secret:hub is not NAME=secret:SECRET/KEY",
        "--env PRIMUS_RDZV is what the pods find each other by",
        "--env B is given twice",
        "--cpu many is not a quantity",
        "--memory 64GB is not a quantity > did you mean 64Gi?",
        "--shm-size 512m is a fraction of a byte > did you mean 512Mi?",
        "--resource gpu=1 is not NAME=N",
        "--resource amd.com/gpu=8 devices are not asked for here",
        "--topology rack is not required=LABEL or preferred=LABEL",
        "--node-selector gpu is not a label KEY=VALUE",
        "--toleration gpu:Never is not KEY[=VALUE][:EFFECT]",
        "--service-account A is not a name",
        "--grace-period 10 must be a duration with its unit",
    ):
        assert expected in said
    assert "abc" not in said


def test_places_that_do_not_nest_and_commands_that_do_not_train_are_refused(cli: Cli, trial: Path) -> None:
    assert "places cannot be nested like this: direct > kubernetes" in " ".join(
        cli("direct", "--", *POD, "--", *TRAIN).stderr.split()
    )
    assert "nested like this: slurm > kubernetes" in " ".join(cli("slurm", "--", *POD, "--", *TRAIN).stderr.split())
    done = cli(*POD, "--", "direct", "--env", "A=1", "--", *TRAIN)
    assert done.returncode == 2
    assert "behind kubernetes, direct takes --nproc alone" in done.stderr
    assert "would change nothing" in " ".join(cli(*POD, "--", "run", "list").stderr.split())
    assert "is a request to Kueue" in problems(cli, "--image", "i", "--user", "1", "--topology", "required=rack")


def test_a_run_that_the_pods_would_lose_is_refused(cli: Cli, trial: Path) -> None:
    done = cli(*POD, "--volume", "shared:/shared", "--", *TRAIN)
    assert done.returncode == 2
    assert str(trial.parent / "runs" / "trial") in done.stderr
    assert "checkpoints would be lost" in done.stderr


def test_without_a_cluster_kubectl_says_so(cli: Cli, trial: Path) -> None:
    need(["kubernetes-client"], ["kubectl"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        config = trial.parent / "kubeconfig"
        server = {"name": "c", "cluster": {"server": f"http://127.0.0.1:{taken.getsockname()[1]}"}}
        context = {"name": "c", "context": {"cluster": "c", "user": ""}}
        config.write_text(json.dumps({"clusters": [server], "contexts": [context], "current-context": "c"}))
        done = cli(*POD, "--volume", f"shared:{trial.parent}", "--", *TRAIN, KUBECONFIG=str(config))
    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "connection refused" in said or "was refused" in said  # as kubectl 1.20 has it
    assert "choose one with `kubectl config use-context NAME` or KUBECONFIG" in said
    assert not (trial.parent / "runs").exists()
    missing = cli(*POD, "--volume", f"shared:{trial.parent}", "--", *TRAIN, PATH=path_without_kubectl(trial.parent))
    assert missing.returncode == 1
    assert "there is no kubectl on PATH" in missing.stderr


def path_without_kubectl(directory: Path) -> str:
    """A directory with what the bootstrap calls."""
    tools = directory / "tools"
    tools.mkdir()
    for entry in os.environ["PATH"].split(os.pathsep):
        for program in Path(entry).glob("*") if Path(entry).is_dir() else []:
            if program.name != "kubectl" and not (tools / program.name).exists():
                (tools / program.name).symlink_to(program)
    return str(tools)


def test_a_dry_run_shows_plan_command_and_manifests(cli: Cli, trial: Path) -> None:
    flags = (
        *POD,
        "-N",
        "2",
        "--kind",
        "trainjob",
        "--volume",
        f"shared:{trial.parent}",
        "--",
        "direct",
        "--nproc",
        "2",
    )
    done = cli(*flags, "--", *TRAIN, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "2 nodes x 2 devices (cpu)" in done.stdout
    assert "kubectl create -f -" in done.stdout
    assert "kind: TrainJob" in done.stdout
    document = json.loads(cli(*flags, "--", *TRAIN, "--dry-run", "--json").stdout)
    assert [each["kind"] for each in document["manifests"]] == ["ConfigMap", "TrainingRuntime", "TrainJob"]
    assert json.loads(document["manifests"][0]["data"]["plan.json"]) == document["plan"]
    assert not (trial.parent / "runs").exists()


def rendered(cli: Cli, trial: Path, *more: str, nodes: int = 1) -> list[dict[str, Any]]:
    flags = ("-N", str(nodes), "--volume", f"shared:{trial.parent}", "--volume", f"code:{ROOT}", "--output", "-")
    done = cli(*POD, *flags, "--", *TRAIN, *more)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def start_pod(cli: Cli, objects: list[dict[str, Any]], directory: Path, index: int, rdzv: str) -> subprocess.Popen[str]:
    """What a pod of `objects` would run, here: its files, its variables and its command, but this machine's Python and
    a meeting point without the cluster's DNS."""
    spec = objects[1]["spec"]
    job = spec if objects[1]["kind"] == "Job" else spec["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    for name, text in objects[0]["data"].items():
        (directory / name).write_text(text, encoding="utf-8")
    variables = {each["name"]: each["value"].replace("$$", "$") for each in container["env"]}
    variables |= {
        "JOB_COMPLETION_INDEX": str(index),
        "PYTHONPATH": variables["PYTHONPATH"] + ":" + cli.env["PYTHONPATH"],
    }
    if "PRIMUS_RDZV" in variables:
        variables["PRIMUS_RDZV"] = rdzv
    python, *arguments, _ = container["command"]
    assert python == "python3"
    process = subprocess.Popen(
        [sys.executable, *arguments, str(directory)],
        env={**cli.env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    cli.started.append(process)
    return process


def test_what_the_pods_run_trains_together(cli: Cli, trial: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    objects = rendered(cli, trial, nodes=2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        rdzv = f"127.0.0.1:{probe.getsockname()[1]}"
    mounted = tmp_path_factory.mktemp("job")
    pods = [start_pod(cli, objects, mounted, index, rdzv) for index in (1, 0)]
    for pod in pods:
        _, err = pod.communicate(timeout=60)
        assert pod.returncode == 0, err
    assert (trial.parent / "runs/trial/checkpoints/step-5").is_dir()
    assert "kubernetes --image primus:1" in (trial.parent / "runs/trial/attempts/1/command").read_text()


def test_a_pod_that_has_to_go_saves_and_its_successor_goes_on(
    cli: Cli, trial: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cli.env["COUNTING_STEP_SECONDS"] = "0.05"
    objects = rendered(cli, trial, "train.steps=40")
    mounted = tmp_path_factory.mktemp("job")
    pod = start_pod(cli, objects, mounted, 0, "")
    events = trial.parent / "runs/trial/attempts/1"
    wait_for(lambda: any('"step_done"' in file.read_text() for file in events.glob("events-*.jsonl")))
    pod.send_signal(signal.SIGTERM)
    pod.communicate(timeout=60)
    assert pod.returncode == 143  # which the Job does not count as a failure
    assert 143 in objects[1]["spec"]["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"]
    saved = [path.name for path in (trial.parent / "runs/trial/checkpoints").iterdir()]
    assert saved
    assert "step-40" not in saved
    lock = trial.parent / "runs/trial/lock"  # as a pod leaves it that died on another node
    lock.write_text(json.dumps({"host": "trial-0", "pid": 7, "token": "other", "started": 1.0}))
    os.utime(lock, (lock.stat().st_mtime - 29,) * 2)
    successor = start_pod(cli, objects, mounted, 0, "")
    out, err = successor.communicate(timeout=60)
    assert successor.returncode == 0, err
    assert "complete: 40 steps" in out
    again = cli(*POD, "--volume", f"shared:{trial.parent}", "--", *TRAIN, "train.steps=40")
    assert again.returncode == 0, again.stderr
    assert "trial is complete: 40 of 40 steps" in again.stdout


def test_outside_of_a_pod_it_says_so(cli: Cli, trial: Path) -> None:
    words = [sys.executable, "-P", "-m", "primus.runtime.pod", str(trial.parent)]
    env = {**cli.env, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(words, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this is not a pod of primus-cli kubernetes" in done.stderr
