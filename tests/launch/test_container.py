"""Rendering the place ``container``: pure, so the commands are compared with ones kept in the repository."""

from __future__ import annotations

import csv
import io
import os
import subprocess
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from primus.cli.places.container import command as flags
from primus.config.secrets import is_secret, masked
from primus.errors import UsageError
from primus.launch.container import Container, Host, Inside, Mount, render
from primus.launch.direct import Command

GOLDEN = Path(__file__).parent / "golden"
AGENT = Command(
    ("/env/bin/python", "-P", "-m", "primus.runtime.agents.agent", "/runs/a/attempts/3"), {"PYTHONPATH": "/src"}
)
DOCKER = Host("docker", "docker", 1000, 100, "me", "node1", groups=(44, 992), amd_groups=("44", "993"))
PODMAN = replace(DOCKER, kind="podman", program="podman", rootless=True)
APPTAINER = replace(DOCKER, kind="apptainer", program="apptainer")
INSIDE = Inside(
    name="primus-a-3-0123",
    labels={"primus.run": "/runs/a", "primus.attempt": "3"},
    directory="/runs/a",
    mounts=(Mount("/runs/a", "/runs/a"), Mount("/src", "/src", True), Mount("/env", "/env", True)),
    env={"HOME": "/tmp"},
    gpus="none",
)
INHERITED = {"NCCL_DEBUG": "INFO", "HF_TOKEN": "hf_geheim", "PRIMUS_PARENT": "1", "LANG": "C", "WANDB_API_KEY": "w"}
ALL = Container(
    "rocm/primus:v26.1",
    volumes=(Mount("/data", "/data", True), Mount("/a,b", '/it"s')),
    env={"FLAVOUR": None, "NCCL_DEBUG": None},
    devices=("/dev/infiniband",),
    name="mine",
    user="5:6",
    network="host",
    ipc="host",
    memory="64g",
    engine_args=("--cap-add=SYS_PTRACE", "--security-opt=seccomp=unconfined"),
)
ROCM = replace(INSIDE, gpus="amd", several_nodes=True)


@pytest.mark.parametrize(
    ("name", "place", "host", "inside"),
    [
        ("docker", Container("debian:12"), DOCKER, INSIDE),
        ("docker_rocm", Container("rocm/primus:v26.1"), DOCKER, ROCM),
        ("docker_cuda", Container("pytorch:cuda"), DOCKER, replace(INSIDE, gpus="all")),
        ("docker_all_flags", ALL, DOCKER, ROCM),
        ("docker_rootless", Container("debian:12"), replace(DOCKER, rootless=True), INSIDE),
        ("podman_rocm", Container("rocm/primus:v26.1"), PODMAN, ROCM),
        ("podman_cuda", Container("nvidia"), PODMAN, replace(INSIDE, gpus="all")),
        ("apptainer_rocm", Container("primus.sif", memory="64g", devices=("/dev/infiniband",)), APPTAINER, ROCM),
    ],
)
def test_golden(name: str, place: Container, host: Host, inside: Inside) -> None:
    rendered = render(place, host, AGENT, inside, INHERITED).shell() + "\n"
    golden = GOLDEN / f"container_{name}.sh"
    if os.environ.get("WRITE_GOLDEN"):
        golden.write_text(rendered)
    assert rendered == golden.read_text()


HOSTILE = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20)


@given(path=HOSTILE, value=HOSTILE, label=HOSTILE)
def test_hostile_paths_and_values_stay_one_word_and_one_field(path: str, value: str, label: str) -> None:
    place = Container("image", volumes=(Mount(f"/{path}", f"/to/{path}", True),))
    command = Command((*AGENT.argv, value), {"ODD": value})
    inside = replace(INSIDE, labels={"primus.run": label})
    argv = render(place, DOCKER, command, inside, {}).argv
    assert argv[-2:] == (value, "--attached")
    assert argv[argv.index("--label") + 1] == f"primus.run={label}"
    assert f"ODD={value}" in argv
    mounts = [word for flag, word in pairwise(argv) if flag == "--mount"]
    (fields,) = [found for found in map(fields_of, mounts) if "/to/" in found[2]]
    assert fields == ["type=bind", f"source=/{path}", f"target=/to/{path}", "readonly"]


def fields_of(option: str) -> list[str]:
    (fields,) = csv.reader(io.StringIO(option, newline=""))
    return fields


@given(value=HOSTILE)
def test_the_line_means_the_same_to_a_shell(value: str) -> None:
    place = Container("image", volumes=(Mount(f"/{value}", f"/{value}"),))
    rendered = render(place, replace(DOCKER, program="printf"), AGENT, INSIDE, {})
    shown = rendered.shell().replace("printf", "printf '%s\\0'", 1)
    out = subprocess.run(["sh", "-c", shown], capture_output=True, check=True).stdout
    assert out.decode().split("\0")[:-1] == list(rendered.argv[1:])


@pytest.mark.parametrize("host", [DOCKER, PODMAN, APPTAINER])
@given(value=st.text("0123456789abcdef", min_size=16, max_size=16), name=st.sampled_from(["HF_TOKEN", "MY_API_KEY"]))
def test_no_secret_is_seen(host: Host, value: str, name: str) -> None:
    place = Container("image", env={name: None})
    command = render(place, host, AGENT, INSIDE, {"HF_TOKEN": value, name: value})
    assert value not in command.shell()
    assert value not in repr(command)
    assert any(name in word for word in (*command.argv, *command.secrets))


def test_what_passes_and_what_does_not() -> None:
    argv = render(Container("i"), DOCKER, AGENT, INSIDE, {**INHERITED, "HSA_X": "1", "JAX_Y": "2"}).argv
    passed = [word for flag, word in pairwise(argv) if flag == "--env" and "=" not in word]
    assert passed == ["HF_TOKEN", "HSA_X", "JAX_Y", "NCCL_DEBUG"]


def test_the_plan_stands_over_the_caller_and_the_command_line_over_both() -> None:
    command = replace(AGENT, env={"NCCL_DEBUG": "WARN", "PYTHONPATH": "/src"})
    argv = render(Container("i"), DOCKER, command, INSIDE, {"NCCL_DEBUG": "INFO", "PYTHONPATH": "/mine"}).argv
    assert "NCCL_DEBUG=WARN" in argv
    assert "NCCL_DEBUG" not in argv
    asked = Container("i", env={"NCCL_DEBUG": None, "PYTHONPATH": None})
    argv = render(asked, DOCKER, command, INSIDE, {"NCCL_DEBUG": "INFO", "PYTHONPATH": "/mine"}).argv
    assert "NCCL_DEBUG" in argv
    assert "NCCL_DEBUG=WARN" not in argv
    assert "PYTHONPATH=/src" in argv  # without it the ranks could not import Primus


def test_no_privileges_unless_asked_for() -> None:
    for host in (DOCKER, PODMAN):
        for inside in (INSIDE, ROCM):
            argv = render(Container("i"), host, AGENT, inside, {}).argv
            assert argv[argv.index("--security-opt") + 1] == "no-new-privileges"
            assert not {"--privileged", "--cap-add"} & {word.partition("=")[0] for word in argv}
    assert not any("/dev" in word for word in render(Container("i"), DOCKER, AGENT, INSIDE, {}).argv)
    assert "--privileged" in render(Container("i", engine_args=("--privileged",)), DOCKER, AGENT, INSIDE, {}).argv


def test_what_apptainer_has_nothing_like_is_refused() -> None:
    with pytest.raises(UsageError, match="--user, --shm-size"):
        render(Container("i.sif", user="0", shm_size="1g"), APPTAINER, AGENT, INSIDE, {})


def parsed(*words: str) -> Container:
    place = flags.main(["--image", "i", *words], standalone_mode=False)
    assert isinstance(place, Container)
    return place


def test_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SET", "here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vars").write_text("# ours\nA=1\n\nSET\nB = two words\n")
    place = parsed("--volume", "data", "--volume", "/x:/y:ro", "--env", "E=a=b", "--env", "SET", "--env", "./vars")
    assert place.volumes == (Mount(f"{tmp_path}/data", f"{tmp_path}/data"), Mount("/x", "/y", True))
    assert place.env == {"E": "a=b", "SET": None, "A": "1", "B": " two words"}
    assert parsed("--engine-arg=--cap-add=X", "--engine-arg", "--init").engine_args == ("--cap-add=X", "--init")


def test_a_secret_on_the_command_line_goes_on_in_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "old")
    monkeypatch.setenv("MY_SECRET", "old")
    (tmp_path / "vars").write_text("MY_SECRET=from the file\n")
    place = parsed("--env", "HF_TOKEN=new", "--env", str(tmp_path / "vars"))
    assert place.env == {"HF_TOKEN": None, "MY_SECRET": None}
    assert (os.environ["HF_TOKEN"], os.environ["MY_SECRET"]) == ("new", "from the file")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--volume", "/a:b"], "b is not an absolute path"),
        (["--volume", "/a:/b:rx"], "is not H, H:C or H:C:ro"),
        (["--volume", ":/b"], "names no file or directory"),
        (["--env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set here"),
        (["--env", "./nothing"], "no file that can be read: No such file or directory"),
        (["--env", "9=1"], "'9' is not the name of a variable"),
        (["--shm-size", "much"], "--shm-size much: is not a size"),
        (["--name", "-x"], "is not a name for a container"),
        (["--image", "--rm"], "is not the name of an image"),
        (["--engine-arg", "privileged"], "--engine-arg=privileged: is not a flag"),
        (["--engine-arg=-itd"], "--engine-arg=-d: would take the command apart"),
        (["--engine-arg=--env=HF_TOKEN=x"], "--engine-arg=--env: would take"),
    ],
)
def test_wrong_flags(words: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parsed(*words)


def test_all_wrong_flags_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parsed("--volume", "/a:b", "--memory", "x", "--env", "9=1")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("given_words", "shown"),
    [
        (["--env", "HF_TOKEN=x", "--", "train"], ["--env", "HF_TOKEN", "--", "train"]),
        (["--env=WANDB_API_KEY=x\ny"], ["--env=WANDB_API_KEY"]),
        (["--env", "NCCL_DEBUG=x"], ["--env", "NCCL_DEBUG=x"]),
        (["--config", "MY_TOKEN=x"], ["--config", "MY_TOKEN=x"]),
        (["--env", "MLFLOW_TRACKING_URI=https://me:pw@host"], ["--env", "MLFLOW_TRACKING_URI"]),
        (["--env", "GIT=ssh://git@host:22/x"], ["--env", "GIT=ssh://git@host:22/x"]),
    ],
)
def test_masked(given_words: list[str], shown: list[str]) -> None:
    assert masked(given_words) == tuple(shown)


@pytest.mark.parametrize(
    ("name", "secret"),
    [("HF_TOKEN", True), ("X_API_KEY", True), ("MY_SECRET_ID", True), ("DB_PASSWORD", True), ("TOKENIZERS", False)],
)
def test_is_secret(name: str, secret: Any) -> None:
    assert is_secret(name) is secret
