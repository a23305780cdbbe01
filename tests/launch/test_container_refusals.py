"""What can be wrong with engines, images and mounts: each is said before anything is started, with a way out."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import Cli
from docker_engine import BARE, FOREIGN, IMAGE, Docker

from primus.errors import LaunchError
from primus.runtime.containers import engines

Refused = Callable[..., str]

TRAIN = ("--", "train", "pretrain", "--config", "trial.yaml")


@pytest.fixture
def refused(cli: Cli, docker: Docker, trial: Path) -> Iterator[Refused]:
    """Runs the command line, which must be refused; returns what it said, in one line."""

    def run(*words: str, backend: str = "counting", **more: str) -> str:
        environment = {"DOCKER_HOST": docker.host, **more}
        done = cli("container", *words, *TRAIN, f"backend={backend}", **environment)
        assert done.returncode in (1, 2), done.stdout
        assert "Traceback" not in done.stderr
        assert not (trial.parent / "runs" / "trial" / "attempts").exists()
        return re.sub(r"\s+", " ", done.stderr)

    yield run
    assert not docker.containers()


def test_no_engine(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("sh", "readlink"):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    alone = {"PATH": str(tmp_path / "bin")}
    said = refused("--image", IMAGE, **alone)
    assert "there is no container engine on PATH > install docker, podman or apptainer" in said
    assert "there is no podman on PATH" in refused("--image", IMAGE, "--engine", "podman", **alone)


def test_no_such_image(refused: Refused) -> None:
    said = refused("--image", "nobody/nothing:1")
    assert "docker has no image nobody/nothing:1 > Primus pulls nothing by itself: docker pull nobody/nothing:1" in said


def test_a_daemon_that_is_not_there(refused: Refused, tmp_path: Path) -> None:
    said = refused("--image", IMAGE, DOCKER_HOST=f"unix://{tmp_path}/nothing.sock")
    assert f"Cannot connect to the Docker daemon at unix://{tmp_path}/nothing.sock" in said
    assert "correct DOCKER_HOST" in said


def test_a_daemon_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, docker: Docker) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.bind(str(tmp_path / "deaf"))
        deaf.listen()
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/deaf")
        with pytest.raises(LaunchError, match=r"docker at unix\S+deaf has not answered within 1 s"):
            engines.ask("docker", "version", patience=1)


def test_an_image_for_another_machine(refused: Refused) -> None:
    said = refused("--image", FOREIGN)
    assert re.search(r"this image is for linux/arm64, and docker runs on linux/\w+", said)
    assert "docker pull --platform linux/" in said


def test_an_image_without_anything(refused: Refused) -> None:
    """Not even a C library: this machine's Python cannot run in it, and it has none."""
    said = refused("--image", BARE)
    assert f"{sys.executable} of this machine cannot be run in this image" in said
    assert "no such file or directory" in said
    assert "python3.9 cannot be run in this image" in refused("--image", IMAGE, "--python", "python3.9")


def test_mounts_and_devices_that_are_not_there(refused: Refused, tmp_path: Path) -> None:
    said = refused("--image", IMAGE, "--volume", f"{tmp_path}/no:/no", "--device", "/dev/no", "--gpus", "amd")
    assert f"{tmp_path}/no does not exist" in said
    assert "this machine has no /dev/no > correct the path, or leave it out" in said
    assert os.path.exists("/dev/kfd") or "this machine has no /dev/kfd" in said


def test_a_name_that_is_taken(refused: Refused, docker: Docker) -> None:
    docker("run", "--detach", "--name", "taken", "--entrypoint", "sleep", IMAGE, "600")
    said = refused("--image", IMAGE, "--name", "taken")
    assert docker.containers("status=running") == ["taken"]
    docker("rm", "--force", "taken")
    assert "there is a container called taken already > another name, or end and remove that one" in said


def test_an_image_with_an_engine_of_another_version_is_refused_with_the_list(refused: Refused, docker: Docker) -> None:
    """It is not covered up by an environment of this machine's: the image was meant."""
    site = "/usr/lib/python3/dist-packages"
    docker("run", "--name", "making", "--entrypoint", "mkdir", IMAGE, "-p", f"{site}/torch-2.1.0.dist-info")
    docker("commit", "making", "primus-test:old-torch")
    docker("rm", "making")
    said = refused("--image", "primus-test:old-torch", backend="counting_torchrun")
    assert "the Python of this image (/usr/bin/python3) cannot serve as the torch environment" in said
    assert re.search(r"torch is 2\.1\.0, needs ==", said)
    assert "pydantic is not installed" in said
