"""Training in containers of a real docker engine: what is trained, who may see what, that nothing is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from command_line import ROOT, Cli, environment_of, processes_with, wait_for
from docker_engine import IMAGE, Docker, Engine
from slurm_cluster import Cluster
from slurm_jobs import log, submit
from tiny import make_dataset

from primus.checkpoints.store import newest_intact
from primus.events.follow import read_run
from primus.runtime.run_directory import RunDirectory

QUICKSTART = ROOT / "examples" / "quickstart.yaml"
ENDLESS = ("train.steps=100000", "checkpoint.interval=1000")


@pytest.fixture(autouse=True)
def _engine(docker: Docker, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    cli.env["DOCKER_HOST"] = docker.host
    monkeypatch.setenv("DOCKER_HOST", docker.host)


def words(*more: str, place: tuple[str, ...] = ()) -> list[str]:
    variables = [word for name in ("COUNTING_STEP_SECONDS", "COUNTING_FAULT") for word in ("--env", name)]
    return ["container", "--image", IMAGE, *variables, *place, "--", *more]


def counting(*more: str, place: tuple[str, ...] = ()) -> list[str]:
    return words("train", "pretrain", "--config", "trial.yaml", *more, place=place)


PLAIN = {"COUNTING_STEP_SECONDS": "0.01", "COUNTING_FAULT": ""}


def run_of(trial: Path) -> Path:
    return trial.parent / "runs" / "trial"


def steps(trial: Path, attempt: int = 1) -> int:
    try:
        return (run_of(trial) / f"attempts/{attempt}/events-rank0.jsonl").read_text().count("step_done")
    except FileNotFoundError:
        return 0


def labelled(docker: Engine, trial: Path) -> list[str]:
    return docker.containers(f"label=primus.run={run_of(trial)}")


def test_the_quickstart_trains_on_two_processes_and_goes_on_in_a_slurm_job(
    cli: Cli, cluster: Cluster, tmp_path: Path
) -> None:
    """TorchTitan, two ranks that talk through gloo, in one container; from there in one on each of two nodes."""
    data = make_dataset(tmp_path / "data" / "chain")
    train = ["train", "pretrain", "--config", str(QUICKSTART), f"data.train={data}", "data.validation=0.05"]
    train += ["optimizer.schedule.warmup_steps=2", "optimizer.schedule.decay_steps=20", "train.seq_length=64"]
    place = ["container", "--image", IMAGE, "--", "direct", "--nproc", "2", "--"]
    two = ("train.micro_batch_size=2", "parallel.data_replicate=2")
    first = cli(*place, *train, "train.steps=10", *two, timeout=280)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "complete: 10 steps" in first.stdout
    job = submit(cli, "-N", "2", "--", "container", "--image", IMAGE, "--", *train, "train.steps=20", *two)
    run = tmp_path / "runs" / "quickstart"
    assert cluster.wait(job, "COMPLETED", "FAILED", "CANCELLED", seconds=200) == "COMPLETED", log(run)
    history = read_run(run)
    assert history.status == "complete"
    assert [(attempt.resumed_from, attempt.world_size) for attempt in history.attempts] == [(None, 2), (10, 2)]
    assert len(history.steps) == 20
    outside = cli(*train, "train.steps=20", "name=outside", timeout=280)
    assert outside.returncode == 0, outside.stderr
    same = cli("numerics", "compare", "quickstart", "outside", "--band", "1e-5")
    assert same.returncode == 0, same.stdout + same.stderr
    mine = {path.stat().st_uid for path in (tmp_path / "runs" / "quickstart").rglob("*")}
    assert mine == {os.getuid()}


def test_dry_run_shows_the_command_and_leaves_nothing(cli: Cli, docker: Docker, trial: Path) -> None:
    done = cli(*counting("--dry-run"), **PLAIN)
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.replace("\\\n", " ").split())  # wrapped where the directory's length has it
    assert "docker run --rm --init --interactive --pull never --name primus-trial-1-TOKEN" in shown
    assert "--attached" in shown
    assert not run_of(trial).exists()
    assert not docker.containers()


def test_ctrl_c_saves_and_ends_the_container(cli: Cli, docker: Docker, trial: Path) -> None:
    process = cli.start(*counting(*ENDLESS), **PLAIN)
    wait_for(lambda: steps(trial) > 5, 100)
    (name,) = labelled(docker, trial)
    assert name.startswith("primus-trial-1-")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped after step" in out
    newest, _ = newest_intact(run_of(trial))
    assert newest is not None
    assert newest.step >= 5
    assert not labelled(docker, trial)
    again = cli(*counting(f"train.steps={newest.step + 5}"), **PLAIN)
    assert again.returncode == 0, again.stderr
    assert f"continues after step {newest.step}" in again.stdout


def test_a_second_ctrl_c_ends_the_container_at_once(cli: Cli, docker: Docker, trial: Path) -> None:
    process = cli.start(*counting(*ENDLESS), COUNTING_STEP_SECONDS="600", COUNTING_FAULT="")
    wait_for(lambda: "run_started" in _events(trial))
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)  # a launcher that is asked twice at once hears it once
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert not labelled(docker, trial)
    assert not processes_with(str(run_of(trial)))


def _events(trial: Path) -> str:
    try:
        return (run_of(trial) / "attempts/1/events-rank0.jsonl").read_text()
    except FileNotFoundError:
        return ""


def test_a_killed_launcher_leaves_no_container(cli: Cli, docker: Docker, trial: Path) -> None:
    process = cli.start(*counting(*ENDLESS), **PLAIN)
    wait_for(lambda: steps(trial) > 5, 100)
    process.kill()
    process.communicate()
    wait_for(lambda: not labelled(docker, trial), 60, "the end of the container")
    wait_for(lambda: not processes_with(str(run_of(trial))), 60, "the end of its client")


def test_a_killed_client_leaves_no_container_and_the_run_says_so(cli: Cli, docker: Docker, trial: Path) -> None:
    process = cli.start(*counting(*ENDLESS), **PLAIN)
    wait_for(lambda: steps(trial) > 5, 100)
    for pid, line in processes_with(f"primus.run={run_of(trial)}").items():
        if "docker" in line.split()[0]:
            os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1, err
    wait_for(lambda: not labelled(docker, trial), 60, "the end of the container")


def test_a_hang_is_found_and_the_stacks_are_there(cli: Cli, docker: Docker, trial: Path) -> None:
    done = cli(*counting("resilience.hang_timeout=2s"), COUNTING_STEP_SECONDS="0.01", COUNTING_FAULT="hang!:0:3")
    assert done.returncode == 1, done.stdout
    assert "the run hangs" in done.stderr
    assert "_fault" in (run_of(trial) / "attempts/1/logs/hang-1/rank-0.stack").read_text()
    assert not labelled(docker, trial)


def test_with_podman_too_nothing_is_left_behind(cli: Cli, podman: Engine, trial: Path) -> None:
    """Ctrl-C, a killed launcher, a killed client."""
    cli.env.update(podman.env)
    place = ("--engine", "podman")
    process = cli.start(*counting(*ENDLESS, place=place), **PLAIN)
    wait_for(lambda: steps(trial) > 5 or process.poll() is not None, 100)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "stopped after step" in out
    for attempt in (2, 3):
        process = cli.start(*counting(*ENDLESS, place=place), **PLAIN)
        wait_for(lambda number=attempt: steps(trial, number) > 5, 100)
        if attempt == 2:
            process.kill()
        else:
            clients = processes_with(f"primus.run={run_of(trial)}")
            os.kill(next(pid for pid, line in clients.items() if line.startswith("podman run --rm")), signal.SIGKILL)
        process.communicate(timeout=60)
        wait_for(lambda: not labelled(podman, trial), 60, "the end of the container")
    assert cli(*counting("train.steps=1", place=place), **PLAIN).returncode == 0


def test_a_memory_limit_that_is_too_small_is_named(cli: Cli, docker: Docker, trial: Path) -> None:
    fault = {"COUNTING_STEP_SECONDS": "0.01", "COUNTING_FAULT": "memory!:0:3"}
    done = cli(*counting(place=("--memory", "300m")), **fault)
    assert done.returncode == 1, done.stdout
    assert "killed by SIGKILL by the kernel: out of memory (limit 300 MiB)" in " ".join(done.stderr.split())
    assert "the memory limit of the container is too small" in done.stderr
    none = cli(*counting("name=none", place=("--memory", "12m")), **PLAIN)  # not even for the agent
    assert none.returncode == 1, none.stdout
    assert "the container was killed, by its memory limit (--memory)" in " ".join(none.stderr.split())
    assert not docker.containers()


def test_two_nodes_of_a_slurm_job_train_in_containers(cli: Cli, docker: Docker, cluster: Cluster, trial: Path) -> None:
    inner = counting("backend=counting_torchrun", "train.steps=100", place=("--env", "HF_TOKEN=hf_geheim"))
    shown = cli("slurm", "-N2", "--", *inner, "--dry-run", "--json", **PLAIN)
    submitted, first = json.loads(shown.stdout)["commands"]
    assert submitted[0] == "sbatch"
    assert "--network host" in " ".join(first)
    assert "geheim" not in shown.stdout
    process = cli.start("slurm", "srun", "-N2", "--", *inner, **PLAIN | {"COUNTING_STEP_SECONDS": "0.05"})
    wait_for(lambda: steps(trial) > 2, 100)
    assert len(labelled(docker, trial)) == 2
    assert not {pid: line for pid, line in processes_with("geheim").items() if pid != process.pid}
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, out + err
    assert read_run(run_of(trial)).status == "complete"
    assert not labelled(docker, trial)
    assert not [path for path in run_of(trial).rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]


def test_what_the_engine_refuses_is_shown_as_it_says_it(cli: Cli, docker: Docker, trial: Path) -> None:
    done = cli(*counting(place=("--engine-arg=--frobnicate",)), **PLAIN)
    assert done.returncode == 1, done.stdout
    assert "unknown flag: --frobnicate" in done.stderr
    assert "the container's engine refused to start it" in done.stderr
    assert not docker.containers()


def test_leftovers_of_this_run_are_ended_and_no_others(cli: Cli, docker: Docker, trial: Path) -> None:
    """On the first node and on another, which may share a machine with one that is alive. One has the name that the
    next is to have."""
    sleeper, run = ("run", "--detach", "--entrypoint", "sleep"), run_of(trial)
    labels = ("--label", f"primus.run={run}", "--label", "primus.attempt=1")
    docker(*sleeper, "--name", "ours", *labels, IMAGE, "600")
    docker(*sleeper, "--name", "other-run", "--label", f"primus.run={run}-2", IMAGE, "600")
    docker(*sleeper, "--name", "somebodys", IMAGE, "600")
    try:
        done = cli(*counting(place=("--name", "ours")), **PLAIN)
        assert done.returncode == 0, done.stderr
        assert sorted(docker.containers()) == ["other-run", "somebodys"]
        docker(*sleeper, "--name", "dead", *labels, "--label", "primus.node=1", IMAGE, "600")
        docker(*sleeper, "--name", "alive", *labels, "--label", "primus.node=0", IMAGE, "600")
        lock = RunDirectory(run).attempt(1).claim(0)
        second = ("direct", "--nnodes", "2", "--node-rank", "1", "--rdzv", "127.0.0.1:1", "--")
        process = cli.start(*words(*second, "train", "pretrain", "--config", "trial.yaml", "train.steps=9"), **PLAIN)
        wait_for(lambda: "dead" not in docker.containers(), 60)
        assert sorted(docker.containers()) == ["alive", "other-run", "somebodys"]
        process.kill()
        lock.release()
    finally:
        docker("rm", "--force", *docker.containers())


def test_secrets_are_seen_by_the_ranks_alone(cli: Cli, trial: Path) -> None:
    """Not by a process list, nor by a file of the run; a plan and the console neither."""
    place = ("--env", "HF_TOKEN=hf_geheim", "--env", "WANDB_API_KEY")
    process = cli.start(*counting(*ENDLESS, place=place), **PLAIN, WANDB_API_KEY="w_geheim")
    wait_for(lambda: steps(trial) > 2, 100)
    # our own command line has what its caller wrote there; nothing that comes of it has
    started = {pid: line for pid, line in processes_with("geheim").items() if pid != process.pid}
    assert not started
    (rank, *_) = [pid for pid, line in processes_with("primus.runtime.worker").items() if str(run_of(trial)) in line]
    seen = environment_of(rank)
    assert (seen["HF_TOKEN"], seen["WANDB_API_KEY"]) == ("hf_geheim", "w_geheim")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert "geheim" not in out + err
    assert "--env HF_TOKEN" in out
    written = [path for path in run_of(trial).rglob("*") if path.is_file() and b"geheim" in path.read_bytes()]
    assert not written


def test_variables_volumes_and_identity(cli: Cli, docker: Docker, trial: Path) -> None:
    mine = trial.parent / 'my, "data"'
    mine.mkdir()
    (mine / "file").write_text("here")
    place = ("--volume", f"{mine}:/in side:ro", "--env", "FLAVOUR=a 'b'\n$c", "--shm-size", "9m", "--memory", "2g")
    process = cli.start(*counting(*ENDLESS, place=place), **PLAIN, NCCL_DEBUG="INFO", UNRELATED="x")
    wait_for(lambda: steps(trial) > 2, 100)
    (name,) = labelled(docker, trial)
    said = docker("exec", name, "sh", "-c", "id -u; cat '/in side/file'; touch '/in side/new' 2>&1; df /dev/shm; env")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    lines = said.splitlines()
    assert lines[0] == str(os.getuid())
    assert lines[1].startswith("heretouch: cannot touch")
    assert "Read-only file system" in said
    assert re.search(r"^shm +9216 ", said, re.MULTILINE)
    assert "FLAVOUR=a 'b'\n$c\n" in said
    assert "NCCL_DEBUG=INFO" in lines
    assert not [line for line in lines if line.startswith(("UNRELATED", "PRIMUS_PARENT"))]


def test_the_python_of_an_image_is_used_when_it_is_named(cli: Cli, docker: Docker, trial: Path) -> None:
    """An image with all that the command line needs trains by itself; nothing of this machine's Python is mounted."""
    site = "/usr/lib/python3/dist-packages"
    docker("run", "--name", "making", "--entrypoint", "mkdir", IMAGE, "-p", site)
    import click

    here = Path(click.__file__).parent.parent
    packages = ("click", "pydantic", "pydantic_core", "annotated_types", "typing_inspection", "yaml", "rich", "xxhash")
    packages += ("markdown_it", "mdurl", "pygments", "typing_extensions.py")
    docker.put("making", site, *(here / package for package in packages), *here.glob("*.dist-info"))
    docker("commit", "making", "primus-test:own")
    docker("rm", "making")
    own = [word if word != IMAGE else "primus-test:own" for word in counting(place=("--python", "/usr/bin/python3"))]
    done = cli(*own, **PLAIN)
    assert done.returncode == 0, done.stdout + done.stderr
    shown = cli(*own, "--dry-run", "--json", "name=other", **PLAIN)
    (argv,) = json.loads(shown.stdout)["commands"]
    assert argv[argv.index("--entrypoint") + 1] == "/usr/bin/python3"
    assert not [word for word in argv if word.startswith("type=bind") and sys.prefix in word]
