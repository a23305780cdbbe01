"""A docker engine of the tests' own, and small images: nothing of the machine's engine is used or touched.

What is missing is installed. The image is made once, which takes a minute, and kept under the user's cache, outside
the checkout.
"""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from system import need, unavailable

PACKAGES = ("python3", "libstdc++6", "libgomp1")
LEAVE_OUT = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
IMAGE = "primus-test:python"
BARE = "primus-test:bare"
FOREIGN = "primus-test:arm64"


@dataclass(frozen=True)
class Docker:
    """A daemon. host: its DOCKER_HOST."""

    host: str

    def __call__(self, *arguments: str, timeout: float = 60) -> str:
        """Run the client; returns what it prints."""
        done = subprocess.run(
            ["docker", *arguments],
            env={**os.environ, "DOCKER_HOST": self.host},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def put(self, container: str, directory: str, *paths: Path) -> None:
        """Copy files and directories into a container."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as file:
            for path in paths:
                file.add(path, path.name)
        environment = {**os.environ, "DOCKER_HOST": self.host}
        command = ["docker", "cp", "-", f"{container}:{directory}"]
        subprocess.run(command, env=environment, input=archive.getvalue(), capture_output=True, check=True)

    def containers(self, *filters: str) -> list[str]:
        """Names, running or not."""
        options = [word for text in filters for word in ("--filter", text)]
        return self("ps", "--all", "--format", "{{.Names}}", *options).split()


def engine(directory: Path) -> Iterator[Docker]:
    """Start a daemon in `directory`, with IMAGE, BARE (an image of one empty file) and FOREIGN; end it afterwards."""
    if os.getuid() != 0:
        unavailable("a docker daemon is started by root")
    need(["docker.io", "mmdebstrap"], ["dockerd", "docker", "mmdebstrap", "runc"])
    archive = _archive()
    with _daemon(directory) as docker:
        docker("import", str(archive), IMAGE)
        (directory / "empty").mkdir()
        (directory / "empty" / "file").touch()
        subprocess.run(["tar", "-cf", directory / "bare.tar", "-C", directory / "empty", "file"], check=True)
        docker("import", str(directory / "bare.tar"), BARE)
        docker("save", "--output", str(directory / "saved.tar"), BARE)
        _rewrite(directory / "saved.tar", directory / "foreign.tar")
        docker("load", "--input", str(directory / "foreign.tar"))
        yield docker


@contextmanager
def _daemon(directory: Path) -> Iterator[Docker]:
    directory.mkdir(parents=True, exist_ok=True)
    socket, log = directory / "docker.sock", directory / "log"
    command = [
        "dockerd",
        "--data-root",
        directory / "data",
        "--exec-root",
        directory / "exec",
        "-H",
        f"unix://{socket}",
    ]
    command += ["--pidfile", directory / "pid", "--bridge=none", "--iptables=false", "--storage-driver", "overlay2"]
    for driver in ("overlay2", "vfs"):  # the second copies, and works on every file system
        command[-1] = driver
        with log.open("wb") as file:
            daemon = subprocess.Popen(command, stdout=file, stderr=file)
        docker = Docker(f"unix://{socket}")
        if _answers(docker, daemon):
            break
    else:
        unavailable(f"dockerd does not start here: {log.read_text()[-600:]}")
    try:
        yield docker
    finally:
        for name in docker.containers():
            docker("rm", "--force", name)
        daemon.terminate()
        daemon.wait(30)


def _answers(docker: Docker, daemon: subprocess.Popen[bytes]) -> bool:
    until = time.monotonic() + 30
    while daemon.poll() is None and time.monotonic() < until:
        try:
            docker("info")
            return True
        except AssertionError:
            time.sleep(0.1)
    daemon.terminate()
    daemon.wait(30)
    return False


def _rewrite(saved: Path, foreign: Path) -> None:
    """BARE, as `saved` by docker, as FOREIGN: its description says that it is for another kind of machine."""
    with tarfile.open(saved) as old, tarfile.open(foreign, "w") as new:
        for member in old.getmembers():
            content = old.extractfile(member) if member.isfile() else None
            data = content.read() if content else b""
            if member.name.endswith(".json"):
                data = data.replace(b'"architecture":"amd64"', b'"architecture":"arm64"').replace(
                    BARE.encode(), FOREIGN.encode()
                )
                member.size = len(data)
            new.addfile(member, io.BytesIO(data))


def _archive() -> Path:
    """The root file system of IMAGE, made once for all sessions."""
    recipe = ["--variant=essential", f"--include={','.join(PACKAGES)}"]
    recipe += [f"--dpkgopt=path-exclude={pattern}" for pattern in LEAVE_OUT]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "primus-tests"
    archive = home / f"image-{sha256(' '.join(recipe).encode()).hexdigest()[:12]}.tar"
    with _alone(home):
        if not archive.exists():
            made = archive.with_suffix(".part.tar")
            done = subprocess.run(
                ["mmdebstrap", "--quiet", *recipe, "bookworm", made], capture_output=True, text=True, check=False
            )
            if done.returncode:
                unavailable(f"an image cannot be made here: {done.stderr[-600:]}")
            made.rename(archive)
    return archive


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """One process at a time, of all that run tests on this machine."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
