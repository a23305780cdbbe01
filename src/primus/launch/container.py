"""The place ``container``: the agent of a node, and with it the ranks, in a container of docker, podman or apptainer.

The launcher stays outside and follows the run directory, which is mounted where it is. ``render`` is pure: what it has
to know about this machine comes in ``Host``, and what about the run in ``Inside``.

Nobody who is killed leaves a container training: the agent ends when its standard input does, which the engine's client
holds open as long as the launcher lives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from primus.config.secrets import parted
from primus.errors import UsageError
from primus.launch.direct import Command

Kind = Literal["docker", "podman", "apptainer"]
Gpus = Literal["all", "amd", "none"]

SHM_SIZE = "16g"
"""Of ``/dev/shm``, through which data loaders and collective libraries pass tensors. The engines' 64 MB are too few."""

AMD_DEVICES = ("/dev/kfd", "/dev/dri")

PASSED: tuple[str, ...] = (
    "PRIMUS_",
    "NCCL_",
    "RCCL_",
    "GLOO_",
    "HSA_",
    "HIP_",
    "ROCR_",
    "CUDA_",
    "HIPBLASLT_",
    "MIOPEN_",
)
PASSED += ("PYTORCH_", "TORCH_", "OMP_", "JAX_", "XLA_", "HF_")
"""The caller's variables with these beginnings reach the ranks."""

KEPT_OUT = {"PRIMUS_PARENT", "PRIMUS_PYTHON", "PRIMUS_REEXECUTED", "PRIMUS_INVOKED_AS"}
"""These speak of processes and interpreters outside."""


@dataclass(frozen=True)
class Mount:
    """A file or directory of this machine, seen in the container as `target`."""

    source: str
    target: str
    readonly: bool = False

    def option(self) -> str:
        """For ``--mount``, which every engine reads as CSV: paths may hold commas, quotes, colons, line breaks."""
        fields = [
            "type=bind",
            f"source={self.source}",
            f"target={self.target}",
            *(["readonly"] if self.readonly else []),
        ]
        quoted = (
            '"{}"'.format(field.replace('"', '""')) if re.search(r'[",\r\n]', field) else field for field in fields
        )
        return ",".join(quoted)


@dataclass(frozen=True)
class Container:
    """The flags of ``container``. env: set in the container; None: the caller's value, which is never
    written down. python: an interpreter of the image."""

    image: str
    engine: Kind | None = None
    volumes: tuple[Mount, ...] = ()
    env: Mapping[str, str | None] = field(default_factory=dict)
    devices: tuple[str, ...] = ()
    name: str = ""
    user: str = ""
    network: str = ""
    ipc: str = ""
    shm_size: str = ""
    memory: str = ""
    gpus: Gpus | None = None
    python: str = ""
    engine_args: tuple[str, ...] = ()


@dataclass(frozen=True)
class Host:
    """The machine. program: the engine's. groups: further ones of the user. amd_groups: those that own AMD devices.
    rootless: the engine runs as the user, who is root in its containers."""

    kind: Kind
    program: str
    uid: int
    gid: int
    user: str
    hostname: str
    groups: tuple[int, ...] = ()
    amd_groups: tuple[str, ...] = ("video", "render")
    rootless: bool = False


@dataclass(frozen=True)
class Inside:
    """What the run needs in the container. name, labels: by which it is found again. directory: where the command
    starts. env: set on top of the agent's own."""

    name: str
    labels: Mapping[str, str]
    directory: str
    mounts: tuple[Mount, ...]
    env: Mapping[str, str]
    gpus: Gpus
    several_nodes: bool = False


def render(place: Container, host: Host, command: Command, inside: Inside, inherited: Mapping[str, str]) -> Command:
    """`command` in a container. inherited: the caller's environment, from which variables are passed on.

    Raises UsageError for flags that the engine has nothing for."""
    clear = {**inside.env, **command.env}
    asked = {name for name, value in place.env.items() if value is None and name != "PYTHONPATH"}
    passed = {name for name in inherited if name.startswith(PASSED) and name not in {*KEPT_OUT, *clear}}
    named = asked | passed
    clear = {name: value for name, value in clear.items() if name not in named}
    program, *arguments = *command.argv, "--attached"
    if host.kind == "apptainer":
        values = {**clear, **{name: inherited[name] for name in named & inherited.keys()}}
        return _apptainer(place, host, (program, *arguments), inside, values)
    name = place.name or inside.name
    argv = [host.program, "run", "--rm", "--init", "--interactive", "--pull", "never", "--name", name]
    for label, value in sorted(inside.labels.items()):
        argv += ["--label", f"{label}={value}"]
    argv += ["--security-opt", "no-new-privileges", *_identity(place, host), *_resources(place, host, inside)]
    for mount in _mounts(place, inside):
        argv += ["--mount", mount.option()]
    for variable, value in sorted(clear.items()):
        argv += ["--env", f"{variable}={value}"]
    for variable in sorted(named):
        argv += ["--env", variable]
    argv += ["--workdir", inside.directory, "--entrypoint", program, *place.engine_args, place.image, *arguments]
    end = (host.program, "rm", "--force", "--volumes", name)
    return Command(tuple(argv), {}, attached=True, end=end)


def _mounts(place: Container, inside: Inside) -> list[Mount]:
    """By target, so that what lies in another comes after it; the person's own stand over ours."""
    by_target = {mount.target: mount for mount in (*inside.mounts, *place.volumes)}
    return [by_target[target] for target in sorted(by_target)]


def _identity(place: Container, host: Host) -> Iterator[str]:
    """The calling user, with all groups: files are theirs, before and after."""
    if place.user:
        yield from ("--user", place.user)
    elif host.kind == "podman" and host.rootless:
        yield from ("--userns", "keep-id", "--user", f"{host.uid}:{host.gid}")
    elif not host.rootless:
        yield from ("--user", f"{host.uid}:{host.gid}")
    if not host.rootless:
        for group in host.groups:
            yield from ("--group-add", str(group))


def _resources(place: Container, host: Host, inside: Inside) -> Iterator[str]:
    network = place.network or ("host" if inside.several_nodes else "")
    if network:
        yield from ("--network", network)
    if network in ("", "bridge", "none"):  # the others have a name of their own
        yield from ("--hostname", host.hostname)
    if place.ipc:
        yield from ("--ipc", place.ipc)
    if place.shm_size or place.ipc in ("", "private", "shareable"):
        yield from ("--shm-size", place.shm_size or SHM_SIZE)
    if place.memory:
        yield from ("--memory", place.memory)
    if inside.gpus == "amd":
        for device in AMD_DEVICES:
            yield from ("--device", device)
        for group in ("keep-groups",) if host.kind == "podman" and host.rootless else host.amd_groups:
            yield from ("--group-add", group)
    elif inside.gpus == "all":
        yield from ("--gpus", "all") if host.kind == "docker" else ("--device", "nvidia.com/gpu=all")
    for device in place.devices:
        yield from ("--device", device)


def _apptainer(
    place: Container, host: Host, words: tuple[str, ...], inside: Inside, variables: Mapping[str, str]
) -> Command:
    """It runs as the user and in the host's network anyway, and takes variables with their values from its own
    environment."""
    given = {"--name": place.name, "--user": place.user, "--ipc": place.ipc, "--shm-size": place.shm_size}
    given["--network"] = "" if place.network == "host" else place.network
    if lacking := [flag for flag, value in given.items() if value]:
        raise UsageError(
            f"apptainer has nothing like {', '.join(lacking)}",
            remedy="leave it out, or choose --engine docker or podman",
        )
    argv = [host.program, "exec", "--contain", "--cleanenv", "--no-home", "--no-eval", "--pwd", inside.directory]
    argv += ["--memory", place.memory] if place.memory else []
    argv += {"amd": ["--rocm"], "all": ["--nv"], "none": []}[inside.gpus]
    for mount in [*_mounts(place, inside), *(Mount(device, device) for device in place.devices)]:
        argv += ["--mount", mount.option()]
    argv += [*place.engine_args, place.image, *words]
    shown, hidden = parted({f"APPTAINERENV_{name}": value for name, value in variables.items()})
    return Command(tuple(argv), shown, secrets=hidden, attached=True)
