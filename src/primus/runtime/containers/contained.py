"""A place ``container`` made ready on this machine: engine, interpreter, mounts; and the agent's command in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

from primus.backends.registry import BUILT_IN, GROUP
from primus.errors import EnvironmentFault, LaunchError, Problem
from primus.home import primus_home
from primus.launch.container import AMD_DEVICES, Container, Gpus, Host, Inside, Mount, render
from primus.launch.direct import Command, Direct
from primus.plan.plan import Plan
from primus.runtime.containers import engines
from primus.runtime.containers.image_python import Image, mounts_of, of_here
from primus.runtime.environments import get, import_path, locate, provide
from primus.runtime.environments.ranks import check_backend, check_import_path, engine_mismatches
from primus.runtime.lock import held_here
from primus.runtime.processes import NODE, node_name
from primus.runtime.run_directory import Attempt, RunDirectory

CACHES = ("HF_HOME",)
"""Variables that name a directory which the ranks may fill, beside ours."""


@dataclass(frozen=True)
class Contained:
    """python: the interpreter of the ranks, as it is called in the container. interpreter_mounts: where it comes from,
    unless it is the image's."""

    container: Container
    host: Host
    python: str
    interpreter_mounts: tuple[Mount, ...]

    def wrap(self, command: Command, plan: Plan, attempt: Attempt, token: str, node: Direct) -> Command:
        """The agent's `command` for `node`, in the container."""
        name = f"primus-{plan.experiment.name}-{attempt.number}-{token}"
        if node.nnodes > 1:
            name += f"-{node.node_rank}"  # nodes may share a machine
        inside = Inside(
            name=name,
            labels={
                engines.RUN_LABEL: plan.run_directory,
                engines.ATTEMPT_LABEL: str(attempt.number),
                engines.NODE_LABEL: str(node.node_rank),
            },
            directory=plan.run_directory,
            mounts=tuple(self._mounts(plan, command)),
            env={"PRIMUS_HOME": str(primus_home()), "HOME": "/tmp", "USER": self.host.user, NODE: node_name()},
            gpus=gpus_of(self.container, plan),
            several_nodes=node.nnodes > 1,
        )
        container = replace(self.container, env={**dict.fromkeys(node.inherited), **self.container.env})
        return render(container, self.host, command, inside, os.environ)

    def remove_leftovers(self, run_directory: Path) -> None:
        """End what earlier, killed launchers of this run may have left on this machine, which several of its nodes may
        share: a container whose launcher lives is none of it."""
        run, left = RunDirectory(run_directory), []
        for container in engines.of_run(self.host, run_directory):
            labels = engines.labels(self.host, container) or {}
            attempt, node = labels.get(engines.ATTEMPT_LABEL, ""), labels.get(engines.NODE_LABEL, "")
            named = attempt.isdecimal() and node.isdecimal()
            if not (named and held_here(run.attempt(int(attempt)).lock(int(node)))):
                left.append(container)
        engines.remove(self.host, left)

    def _mounts(self, plan: Plan, command: Command) -> Iterator[Mount]:
        for entry in command.env["PYTHONPATH"].split(os.pathsep):
            if os.path.isdir(entry):
                yield from _tree(entry)
        yield from self.interpreter_mounts
        for cache in (str(primus_home()), *(os.environ.get(name, "") for name in CACHES)):
            if os.path.isdir(cache):
                yield Mount(cache, cache)
        for source in (*plan.data.sources, *plan.data.validation_sources):
            for path in (f"{source.prefix}{ending}" for ending in (".bin", ".idx", ".json")):
                if os.path.exists(path):
                    yield Mount(path, path, readonly=True)
        for directory in (plan.data.tokenizer, plan.experiment.model.init):
            if directory and os.path.isabs(directory) and os.path.isdir(directory):
                yield from _tree(directory)
        yield from _tree(plan.run_directory, readonly=False)


def _tree(directory: str, *, readonly: bool = True) -> Iterator[Mount]:
    """`directory`, and what links in it lead to: a model in the Hub's cache is nothing but links."""
    yield Mount(directory, directory, readonly)
    if os.path.isdir(directory):
        for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
            if entry.is_symlink() and os.path.exists(entry.path):
                real = os.path.realpath(entry.path)
                if not Path(real).is_relative_to(os.path.realpath(directory)):
                    yield Mount(real, real, readonly)


def prepare(container: Container, plan: Plan) -> Contained:
    """Find and ask engine and image; find or make the environment.

    Raises LaunchError, or EnvironmentFault with what does not fit the plan: all before anything is started."""
    host = engines.examine(container)
    _check_paths(container, plan)
    labels = engines.labels(host, container.name) if container.name else None
    if labels is not None and labels.get(engines.RUN_LABEL) != plan.run_directory:  # our own ends, or is refused, later
        raise LaunchError(
            f"there is a container called {container.name} already",
            where="--name",
            remedy=f"another name, or end and remove that one: {host.kind} rm --force {container.name}",
        )
    environment, backend = get(plan.environment), plan.experiment.backend
    image = Image(container, host)
    own = image.own(import_path()["PYTHONPATH"])
    if own is not None and image.serves(own, environment):
        problems = engine_mismatches(own, plan.engine)
        packages = [point.dist.name for point in entry_points(group=GROUP, name=backend) if point.dist]
        if backend not in BUILT_IN:
            problems += [Problem(name, "is not installed") for name in packages if own.installed(name) is None]
        if problems:
            head = Problem(container.image, f"its Python ({own.executable}) is not what the plan was made for")
            raise EnvironmentFault(problems=[head, *problems])
        return Contained(container, host, own.executable, ())
    python = provide(plan.environment)
    check_backend(backend, python)
    check_import_path(plan.environment, python, import_path()["PYTHONPATH"])
    return Contained(container, host, python, image.mounts_of(python))


def rehearse(container: Container, plan: Plan) -> tuple[Contained, str]:
    """What ``prepare`` would return, as far as this machine can tell, and what it cannot, in words. Makes nothing; an
    image that is here is asked."""
    environment, note = get(plan.environment), ""
    try:
        host = engines.examine(container)
        own = Image(container, host).own(import_path()["PYTHONPATH"])
    except LaunchError as error:
        kind = container.engine or "docker"
        host, own = engines.host_of(kind, kind), None
        note = f"The image was not asked: {error.problems[0].message}."
        if container.python:
            return Contained(container, host, container.python, ()), note
        note += f" Shown is what would run if it has no {environment.engine or 'engine'} of its own."
    if own is not None and Image(container, host).serves(own, environment):
        return Contained(container, host, own.executable, ()), note
    located = locate(plan.environment)
    if located is None:
        root = str(environment.directory)
        return Contained(container, host, environment.executable, (Mount(root, root, readonly=True),)), note
    return Contained(container, host, located.python, mounts_of(of_here(located.python))), note


def gpus_of(container: Container, plan: Plan) -> Gpus:
    """Those of the hardware preset, unless the place says otherwise."""
    by_device: Mapping[str, Gpus] = {"rocm": "amd", "cuda": "all"}
    return container.gpus or by_device.get(plan.experiment.hardware.device, "none")


def _check_paths(container: Container, plan: Plan) -> None:
    """Raise LaunchError for what would be mounted or passed in but is not on this machine."""
    problems = [
        Problem("--volume", f"{mount.source} does not exist", "create it, or correct the path")
        for mount in container.volumes
        if not os.path.exists(mount.source)
    ]
    gpus = AMD_DEVICES if gpus_of(container, plan) == "amd" else ()
    for device in engines.missing_devices((*container.devices, *gpus)):
        flag, remedy = "--gpus", "load AMD's driver (modprobe amdgpu), or train on the CPU: --gpus none, hardware/cpu"
        if device in container.devices:
            flag, remedy = "--device", "correct the path, or leave it out"
        problems.append(Problem(flag, f"this machine has no {device}", remedy))
    if problems:
        raise LaunchError(problems=problems)
