"""A docker engine of the tests' own, and small images: nothing of the machine's engine is used or touched.

What is missing is installed. The image is made once, which takes a minute, and kept under the user's cache, outside
the checkout.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
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
class Engine:
    """program: its client. env: by which that finds what is the tests' own."""

    program: str
    env: dict[str, str]

    def __call__(self, *arguments: str, timeout: float = 60) -> str:
        """Run the client; returns what it prints."""
        done = subprocess.run(
            [self.program, *arguments],
            env={**os.environ, **self.env},
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
        environment = {**os.environ, **self.env}
        command = [self.program, "cp", "-", f"{container}:{directory}"]
        subprocess.run(command, env=environment, input=archive.getvalue(), capture_output=True, check=True)

    def containers(self, *filters: str) -> list[str]:
        """Names, running or not."""
        options = [word for text in filters for word in ("--filter", text)]
        return self("ps", "--all", "--format", "{{.Names}}", *options).split()


class Docker(Engine):
    """host: the daemon's DOCKER_HOST."""

    def __init__(self, host: str) -> None:
        super().__init__("docker", {"DOCKER_HOST": host})

    @property
    def host(self) -> str:
        return self.env["DOCKER_HOST"]


class Podman(Engine):
    def __init__(self, env: dict[str, str]) -> None:
        super().__init__("podman", env)


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
        _clear(directory)


def _clear(directory: Path) -> None:
    """Take away what an engine has mounted in `directory`, and its images."""
    for line in reversed(Path("/proc/mounts").read_text().splitlines()):
        if line.split()[1].startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", line.split()[1]], check=False)
    shutil.rmtree(directory, ignore_errors=True)


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


def podman() -> Iterator[Podman]:
    """Podman with storage of its own and IMAGE in it. It has no daemon."""
    if os.getuid() != 0:
        unavailable("podman's settings here are root's")
    need(["podman", "runc", "catatonit", "conmon", "mmdebstrap"], ["podman", "runc", "conmon", "mmdebstrap"])
    # short: what podman leaves behind to remove an ended container refuses a runroot of more than 50 characters
    directory = Path(tempfile.mkdtemp(prefix="primus-podman-"))
    settings, storage = directory / "containers.conf", directory / "storage.conf"
    # the engine's own limits are more than a machine that is itself a container or a small virtual one may set
    settings.write_text(
        '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\nnetns = "host"\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
    )
    archive = _archive()
    for driver in ("overlay", "vfs"):
        storage.write_text(
            f'[storage]\ndriver = "{driver}"\nrunroot = "{directory}/run"\ngraphroot = "{directory}/{driver}"\n'
        )
        found = Podman({"CONTAINERS_CONF": str(settings), "CONTAINERS_STORAGE_CONF": str(storage)})
        try:
            found("import", "--quiet", str(archive), IMAGE)
            found("run", "--rm", "--entrypoint", "true", IMAGE)
            break
        except AssertionError as error:
            said = str(error)
    else:
        unavailable(f"podman does not run containers here: {said[-600:]}")
    yield found
    for name in found.containers():
        found("rm", "--force", name)
    _clear(directory)


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
