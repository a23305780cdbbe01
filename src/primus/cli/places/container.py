"""The flags of ``primus-cli container``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from primus.cli.places.direct import NAME, withheld
from primus.errors import Problem, UsageError
from primus.home import user_path
from primus.launch.container import Container, Mount

SIZE = re.compile(r"[0-9]+(\.[0-9]+)?[bkmgBKMG]?")

SHORT = re.compile("-[diPqt]*([det])")
"""Flags of one letter may stand in one word: ``-it``."""
OURS = {
    **dict.fromkeys(("-d", "--detach"), "leave it out: the launcher follows the container, and ends it"),
    **dict.fromkeys(("-t", "--tty"), "leave it out: what the container prints goes into logs"),
    **dict.fromkeys(("-e", "--env"), "use --env K=V, which keeps secrets out of the command line"),
    "--entrypoint": "leave it out: what runs is the agent of this node",
    "--name": "use --name NAME",
}
"""Flags of the engine that would make what is rendered something else, and what to do instead."""


@click.command(
    "container",
    help="Run COMMAND's processes in a container of IMAGE. Run directory, data, caches and the environment are mounted "
    "where they are; processes run as the calling user.",
)
@click.option("--image", metavar="IMAGE", required=True, help="Image that is on this machine; it is not pulled.")
@click.option(
    "--engine",
    type=click.Choice(["docker", "podman", "apptainer"]),
    help="Container engine. Default: the first of these that is on PATH.",
)
@click.option(
    "--volume", "volumes", metavar="H[:C[:ro]]", multiple=True, help="Mount H, as C; read-only. May be repeated."
)
@click.option(
    "--env",
    "variables",
    metavar="K[=V]|FILE",
    multiple=True,
    help="Environment variable; without a value: the caller's; or a file of such lines. May be repeated.",
)
@click.option("--device", "devices", metavar="PATH", multiple=True, help="Device to pass in. May be repeated.")
@click.option("--name", metavar="NAME", default="", help="Of the container. Default: made of run and attempt.")
@click.option("--user", metavar="UID[:GID]", default="", help="Default: the calling user.")
@click.option("--network", metavar="NAME", default="", help="Default: the engine's; with several nodes the host's.")
@click.option("--ipc", metavar="MODE", default="", help="Default: the engine's.")
@click.option("--shm-size", metavar="SIZE", default="", help="Of /dev/shm. Default: 16g.")
@click.option("--memory", metavar="SIZE", default="", help="Limit, e.g. 64g. Default: none.")
@click.option(
    "--gpus", type=click.Choice(["all", "amd", "none"]), help="NVIDIA's, AMD's, none. Default: the hardware preset's."
)
@click.option("--python", metavar="PATH", default="", help="A Python of the image that has what is needed.")
@click.option(
    "--engine-arg", "engine_args", metavar="FLAG", multiple=True, help="Any flag of the engine. May be repeated."
)
def command(volumes: tuple[str, ...], variables: tuple[str, ...], **flags: Any) -> Container:
    problems = [*_wrong(flags)]
    mounts, env = [], {}
    for volume in volumes:
        try:
            mounts.append(_mount(volume))
        except ValueError as error:
            problems.append(Problem(f"--volume {volume}", str(error), "e.g. --volume /data:/data:ro"))
    for name, value, where in _lines(variables, problems):
        if not NAME.fullmatch(name):
            problems.append(Problem(where, f"'{name}' is not the name of a variable", "e.g. --env NCCL_DEBUG=INFO"))
        elif value is None and name not in os.environ:
            problems.append(Problem(where, f"{name} is not set here", f"export {name}, or give it a value"))
        else:
            env[name] = value
    if problems:
        raise UsageError(problems=problems)
    return Container(volumes=tuple(mounts), env={name: withheld(name, value) for name, value in env.items()}, **flags)


def _wrong(flags: dict[str, Any]) -> Iterator[Problem]:
    if not flags["image"] or flags["image"].startswith("-") or re.search(r"\s", flags["image"]):
        yield Problem(f"--image {flags['image']}", "is not the name of an image", "e.g. --image rocm/primus:v26.1")
    for flag in ("shm_size", "memory"):
        if flags[flag] and not SIZE.fullmatch(flags[flag]):
            yield Problem(f"--{flag.replace('_', '-')} {flags[flag]}", "is not a size", "e.g. 512m or 64g")
    if flags["name"] and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]+", flags["name"]):
        yield Problem(f"--name {flags['name']}", "is not a name for a container", "letters, digits, '_', '.' and '-'")
    for word in flags["engine_args"]:
        name = f"-{match[1]}" if (match := SHORT.match(word)) else word.partition("=")[0]
        if remedy := OURS.get(name):
            yield Problem(f"--engine-arg={name}", "would take the command apart", remedy)
        elif not word.startswith("-"):
            yield Problem(f"--engine-arg={word}", "is not a flag", "with its value: --engine-arg=--cap-add=SYS_PTRACE")


def _mount(text: str) -> Mount:
    source, *rest = text.split(":")
    target, mode = [*rest, "", ""][:2]
    path = os.path.abspath(user_path(source))
    if not source:
        raise ValueError("names no file or directory of this machine")
    if len(rest) > 2 or mode not in ("", "ro", "rw"):
        raise ValueError("is not H, H:C or H:C:ro")
    if target and not target.startswith("/"):
        raise ValueError(f"{target} is not an absolute path in the container")
    return Mount(path, target or path, mode == "ro")


def _lines(variables: tuple[str, ...], problems: list[Problem]) -> Iterator[tuple[str, str | None, str]]:
    """Name, value (None: the caller's) and place of each variable; a FILE's are its lines, but for comments."""
    for word in variables:
        if "=" in word or NAME.fullmatch(word):
            name, equals, value = word.partition("=")
            yield name, value if equals else None, f"--env {name}"
            continue
        try:
            text = Path(user_path(word)).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8"
            problems.append(Problem(f"--env {word}", f"is no variable, and no file that can be read: {reason}"))
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip() and not line.lstrip().startswith("#"):
                name, equals, value = line.partition("=")
                yield name.strip(), value if equals else None, f"{word}:{number}"
