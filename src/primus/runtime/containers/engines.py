"""Container engines of this machine: which there is, whether it answers, what it knows about an image, ending what we
started. Nothing here touches a container that does not carry our label."""

from __future__ import annotations

import json
import os
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import which

from primus.errors import LaunchError
from primus.launch.container import AMD_DEVICES, Container, Host, Kind

KINDS: tuple[Kind, ...] = ("docker", "podman", "apptainer")
PATIENCE_SECONDS = 20.0
"""How long an engine may take to answer a question."""

RUN_LABEL, ATTEMPT_LABEL, NODE_LABEL = "primus.run", "primus.attempt", "primus.node"

REFUSED = 125
"""Exit code of ``docker run`` and ``podman run`` when it was not the command that failed."""


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def words(self) -> str:
        """Its last line, for people."""
        lines = [line.strip() for line in (self.err or self.out).splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith("See 'docker run --help'") and "--help' for" not in line]
        return lines[-1].removeprefix("docker: ").removeprefix("Error response from daemon: ") if lines else ""


def find(named: Kind | None) -> tuple[Kind, str]:
    """The engine `named`, else the first that is on PATH: docker, podman, apptainer. Returns its kind and program."""
    for kind in (named,) if named else KINDS:
        if which(kind):
            return ("podman" if kind == "docker" and _is_podman(kind) else kind), kind
    wanted = named or "container engine"
    raise LaunchError(
        f"there is no {wanted} on PATH",
        remedy="install docker, podman or apptainer" + (", or leave --engine out" if named else ""),
    )


def _is_podman(program: str) -> bool:
    """Some distributions call podman docker."""
    return "podman" in ask(program, "--version").out.lower()


def ask(program: str, *arguments: str, patience: float = PATIENCE_SECONDS) -> Answer:
    """Run the engine's client to its end. Raises LaunchError when it takes longer than `patience` seconds."""
    command = [program, *arguments]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired as error:
        where = f" at {os.environ['DOCKER_HOST']}" if os.environ.get("DOCKER_HOST") else ""
        raise LaunchError(
            f"{Path(program).name}{where} has not answered within {patience:g} s",
            where=shlex.join(command[:3]),
            remedy="see whether its daemon is alive, or name another engine (--engine)",
        ) from error
    except OSError as error:
        raise LaunchError(f"{program} cannot be started: {error.strerror}", remedy="reinstall it") from error
    return Answer(done.returncode, *(text.decode("utf-8", "replace") for text in (done.stdout, done.stderr)))


def examine(container: Container) -> Host:
    """The engine that runs `container` here, after it has answered and said that it holds the image.

    Raises LaunchError: no engine, no daemon, no such image, or one for another kind of machine.
    """
    kind, program = find(container.engine)
    rootless = os.getuid() != 0 and kind == "podman"
    if kind == "apptainer":
        _check_file(container.image)
    else:
        rootless = _check_image(kind, program, container.image) or rootless
    return host_of(kind, program, rootless)


def host_of(kind: Kind, program: str, rootless: bool = False) -> Host:
    return Host(
        kind=kind,
        program=program,
        uid=os.getuid(),
        gid=os.getgid(),
        user=_user(),
        hostname=socket.gethostname(),
        groups=tuple(sorted(set(os.getgroups()) - {os.getgid()})),
        amd_groups=_amd_groups(),
        rootless=rootless,
    )


def _check_file(image: str) -> None:
    if not Path(image).exists():
        raise LaunchError(
            f"there is no image {image}",
            where=image,
            remedy=f"apptainer takes a file: apptainer pull image.sif docker://{image}, then --image image.sif",
        )


def _check_image(kind: Kind, program: str, image: str) -> bool:
    """Returns whether a docker daemon runs as the user."""
    if kind == "docker":
        about = ask(program, "version", "--format", "{{.Server.Os}}/{{.Server.Arch}}")
        security = ask(program, "info", "--format", "{{.SecurityOptions}}")
    else:
        about = ask(program, "info", "--format", "{{.Host.OS}}/{{.Host.Arch}}")
    if about.code:
        raise LaunchError(about.words, where=kind, remedy=_remedy_for_daemon(kind, about.words))
    found = ask(program, "image", "inspect", "--format", "{{.Os}}/{{.Architecture}}", image)
    if found.code:
        missing = "no such image" in found.err.lower() or "not known" in found.err.lower()
        raise LaunchError(
            f"{kind} has no image {image}" if missing else found.words,
            where=image,
            remedy=f"Primus pulls nothing by itself: {kind} pull {shlex.quote(image)}" if missing else "",
        )
    machine, wanted = about.out.strip(), found.out.strip()
    if machine != wanted:
        raise LaunchError(
            f"this image is for {wanted}, and {kind} runs on {machine}",
            where=image,
            remedy=f"{kind} pull --platform {machine} {shlex.quote(image)}",
        )
    return kind == "docker" and "rootless" in security.out


def _remedy_for_daemon(kind: Kind, words: str) -> str:
    if "permission denied" in words.lower():
        return "ask to be added to the group docker, or name an engine that needs none: --engine podman or apptainer"
    if kind == "docker":
        where = "correct DOCKER_HOST" if os.environ.get("DOCKER_HOST") else "start it (systemctl start docker)"
        return f"{where}, or name another engine: --engine podman or apptainer"
    return f"`{kind} info` says more"


def labels(host: Host, container: str) -> Mapping[str, str] | None:
    """Of a container, running or not, by name or id; None when there is none."""
    if host.kind == "apptainer":
        return None
    found = ask(host.program, "container", "inspect", "--format", "{{json .Config.Labels}}", container)
    return (json.loads(found.out) or {}) if found.code == 0 else None


def of_run(host: Host, run_directory: Path) -> list[str]:
    """Containers of this engine that carry the label of `run_directory`, by id."""
    if host.kind == "apptainer":
        return []  # it has none: its containers are processes, and end with the agent
    listed = ask(host.program, "ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={RUN_LABEL}={run_directory}")
    return listed.out.split() if listed.code == 0 else []


def remove(host: Host, containers: Sequence[str]) -> None:
    if containers:
        ask(host.program, "rm", "--force", "--volumes", *containers)


def missing_devices(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if not os.path.exists(path.partition(":")[0])]


def _amd_groups() -> tuple[str, ...]:
    """Those that may open AMD's devices, by number, which holds in every image; by name where there are no devices."""
    numbers = []
    for path in (AMD_DEVICES[0], *sorted(map(str, Path("/dev/dri").glob("render*")))[:1], "/dev/dri/card0"):
        with suppress(OSError):
            numbers.append(str(os.stat(path).st_gid))
    return tuple(dict.fromkeys(numbers)) or ("video", "render")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
