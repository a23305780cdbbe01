"""The Python environments that commands run in: which there are, where they are found, making them.

An interpreter that already has what is needed is used as it is and never modified. Otherwise the environment is made
from its lock under ``PRIMUS_HOME``. Only the standard library is imported: the bootstrap runs this file before anything
is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shutil import which
from typing import Literal

from primus.errors import EnvironmentFault, Problem
from primus.home import invoked_as, primus_home
from primus.runtime.environments import integrity
from primus.runtime.environments.installing import install
from primus.runtime.environments.interpreters import find
from primus.runtime.environments.pins import (
    Interpreter,
    Lock,
    probe,
    read_lock,
    read_requirements,
    shortcomings,
    this_interpreter,
    variables_for,
)

REEXECUTED = "PRIMUS_REEXECUTED"
"""Set while a command line has been handed to another interpreter: it is not handed on twice."""

MONITOR = "monitor"


@dataclass(frozen=True)
class Environment:
    """engine: the package that it is about; a chosen interpreter that has another environment's instead need not serve
    this one. extends: another environment, which this one serves too once it is made. beside: for a process that is no
    rank, so PRIMUS_PYTHON, chosen for what trains, need not serve it."""

    name: str
    summary: str
    python: tuple[int, int]
    engine: str = ""
    extends: str = ""
    beside: bool = False

    @property
    def lock(self) -> Lock:
        return read_lock(self.name)

    @property
    def directory(self) -> Path:
        """Where it is made; another lock, another directory."""
        return primus_home() / "envs" / f"{self.name}-{self.lock.digest}"

    @property
    def executable(self) -> str:
        """Its Python, once it is made."""
        return str(self.directory / "bin" / "python")

    @property
    def to_come(self) -> str:
        """What is said of it before it is made."""
        return f"The {self.name} environment is not made yet: the first training makes it."

    @property
    def state(self) -> Literal["not made", "being made", "unusable", "broken", "ready"]:
        """Of the one made from the lock. Unusable: it was never finished, or its Python is gone; whoever needs it next
        makes it anew. Broken: its packages are not the lock's any more."""
        if integrity.held(self.directory):
            return "being made"
        if not self.directory.exists():
            return "not made"
        if integrity.unusable(self.directory):
            return "unusable"
        return "broken" if self.faults() else "ready"

    def faults(self, thorough: bool = False) -> list[Problem]:
        """Why the one made from the lock cannot serve; empty when it can. thorough: look at every file."""
        problems = integrity.faults(self.name, self.directory)
        made = integrity.interpreter(self.directory)
        return problems or (integrity.damage(made) if thorough and made else [])

    def shortcomings(self, interpreter: Interpreter) -> list[Problem]:
        """What keeps an `interpreter` that was there already from serving."""
        return shortcomings(interpreter, read_requirements(self.name, interpreter.version), self.python)


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("launcher", "command line and plans", (3, 11)),
        Environment("torch", "training on PyTorch; data", (3, 11), engine="torch"),
        Environment("torchft", "PyTorch whose groups may fail", (3, 11), engine="torch", extends="torch"),
        Environment("jax", "training on JAX", (3, 12), engine="jax"),
        Environment("jax-rocm", "JAX on AMD GPUs (ROCm 7)", (3, 12), engine="jax", extends="jax"),
        Environment("jax-cuda", "JAX on NVIDIA GPUs (CUDA 13)", (3, 12), engine="jax", extends="jax"),
        Environment(MONITOR, "Prometheus, MLflow, W&B", (3, 11), beside=True),
        Environment("dev", "tests, linters, page checks", (3, 11), engine="torch"),
    )
}


@dataclass(frozen=True)
class Located:
    """An interpreter that serves an environment. origin: how it was found, for people."""

    python: str
    origin: str


def get(name: str) -> Environment:
    if name not in ENVIRONMENTS:
        raise EnvironmentFault(f"there is no environment '{name}'", remedy=f"there are {', '.join(ENVIRONMENTS)}")
    return ENVIRONMENTS[name]


def locate(name: str) -> Located | None:
    """The interpreter that serves environment `name`, None when it has to be made first.

    In this order: PRIMUS_PYTHON, this interpreter, the active virtual environment, the one made from the lock, and a
    ``python3`` on PATH that brings its own engine (a ROCm image's). Raises EnvironmentFault with the list of what does
    not match when PRIMUS_PYTHON, the one made, or a GPU's build of an engine was there but cannot serve.
    """
    environment = get(name)
    if chosen := os.environ.get("PRIMUS_PYTHON"):
        interpreter = probe(chosen)
        problems = environment.shortcomings(interpreter)
        if not problems:
            return Located(interpreter.executable, "PRIMUS_PYTHON")
        engines = {each.engine for each in ENVIRONMENTS.values() if interpreter.installed(each.engine)}
        if not environment.beside and (not engines or environment.engine in engines):
            raise _refusal(
                environment, interpreter, problems, "(PRIMUS_PYTHON)", "install these, or unset PRIMUS_PYTHON"
            )
    if not environment.shortcomings(this_interpreter()):
        return Located(sys.executable, "this interpreter")
    found = _active()
    for interpreter in found:
        if not environment.shortcomings(interpreter):
            return Located(interpreter.executable, "active virtual environment")
    return _made(environment) or (None if name == "launcher" else _brought_along(environment, found))


def _made(environment: Environment) -> Located | None:
    """The one made from the lock. Raises EnvironmentFault when it is not what it was made as."""
    state = environment.state
    if state == "ready":
        return Located(environment.executable, "made from its lock")
    if state == "broken":
        head = Problem(
            str(environment.directory),
            f"the {environment.name} environment is not what it was made as",
            f"make it anew: {invoked_as()} env create {environment.name}; "
            f"or keep your changes: PRIMUS_PYTHON={environment.executable}",
        )
        raise EnvironmentFault(problems=[head, *environment.faults()])
    for other in ENVIRONMENTS.values():
        if other.extends == environment.name and other.state == "ready":
            return Located(other.executable, f"the {other.name} environment")
    return None


def _brought_along(environment: Environment, found: list[Interpreter]) -> Located | None:
    """A ``python3`` on PATH that has what is needed. Raises EnvironmentFault beside a GPU's build that cannot serve."""
    if on_path := which("python3"):
        found = [*found, probe(on_path)]
        if not environment.shortcomings(found[-1]):
            return Located(found[-1].executable, "python3 on PATH")
    for interpreter in found:
        if what := _covered_up(environment, interpreter):
            # Making our own here would put whatever build pip finds first, CUDA perhaps, beside a ROCm one.
            remedy = f"install these; or have another made beside it: {invoked_as()} env create {environment.name}"
            problems = environment.shortcomings(interpreter)
            raise _refusal(environment, interpreter, problems, f"has {what} but", remedy)
    return None


def create(name: str, thorough: bool = False) -> str:
    """Make environment `name` from its lock unless it is there and whole. Returns its interpreter. thorough: look at
    every file of one that is there."""
    environment = get(name)
    if environment.faults(thorough):
        python = find(environment.python)
        if python is None:
            wanted = ".".join(map(str, environment.python))
            raise EnvironmentFault(
                f"the {name} environment needs Python {wanted} or newer, and none was found",
                remedy=f"install one so that python{wanted} is on PATH, e.g. `apt install python{wanted} "
                f"python{wanted}-venv` or `uv python install {wanted}`",
            )
        install(environment.lock, environment.directory, python, sys.stderr, lambda: environment.faults(thorough))
    return environment.executable


def provide(name: str) -> str:
    """The interpreter of environment `name`, which is made when there is none."""
    located = locate(name)
    return located.python if located else create(name)


def ensure(name: str, argv: Sequence[str]) -> None:
    """Return when this interpreter serves environment `name`; otherwise become the same command line in one that does.

    argv: the arguments after ``primus-cli``. The process is replaced: signals and the exit code are the command's own.
    """
    if not get(name).shortcomings(this_interpreter()):
        return
    if os.environ.get(REEXECUTED) == name:
        raise EnvironmentFault(
            f"{sys.executable} was chosen for the {name} environment but lacks packages",
            remedy="run: primus-cli env check",
        )
    python = provide(name)
    sys.stdout.flush()
    sys.stderr.flush()
    variables = {**variables_for(python), **import_path(), REEXECUTED: name}
    os.execve(python, [python, "-P", "-m", "primus.cli", *argv], variables)


def import_path() -> dict[str, str]:
    """``PYTHONPATH`` with which another interpreter imports this very package, and what the user put there."""
    ours = str(_importable_parent())
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != ours]
    return {"PYTHONPATH": os.pathsep.join([ours, *others])}


def _importable_parent() -> Path:
    """A directory that holds the package ``primus`` and nothing that could shadow another environment's packages: the
    checkout's ``src``, or for an installed package a directory with a link to it."""
    package = Path(__file__).resolve().parents[2]
    parent = package.parent
    if parent.name not in {"site-packages", "dist-packages"}:
        return parent
    links = primus_home() / "packages" / sha256(str(parent).encode()).hexdigest()[:12]
    link = links / package.name
    if not link.exists():
        try:
            links.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(package)
        except FileExistsError:
            return links  # another process was faster
        except OSError as error:
            raise EnvironmentFault(
                f"cannot write {links}: {error.strerror}", remedy="set PRIMUS_HOME to a writable directory"
            ) from error
    return links


def _active() -> list[Interpreter]:
    """The active virtual environment, read from its directory without starting it."""
    root = os.environ.get("VIRTUAL_ENV")
    if not root or Path(root) == Path(sys.prefix):
        return []
    sites = sorted(Path(root).glob("lib/python3.*/site-packages"))
    python = str(Path(root, "bin", "python"))
    return [
        Interpreter(python, (3, int(site.parent.name.removeprefix("python3."))), (str(site),))
        for site in sites
        if os.access(python, os.X_OK)
    ]


def _covered_up(environment: Environment, interpreter: Interpreter) -> str:
    """The GPU's build of the environment's engine that `interpreter` has, in words; empty if it has none."""
    if environment.engine == "torch":
        return "a ROCm build of torch" if _is_rocm(interpreter) else ""
    return "jax" if environment.extends and interpreter.installed(environment.engine) else ""


def _is_rocm(interpreter: Interpreter) -> bool:
    distribution = interpreter.installed("torch")
    if distribution is None:
        return False
    if "rocm" in distribution.version:
        return True
    version = distribution.site / "torch" / "version.py"
    return version.is_file() and "hip: Optional[str] = '" in version.read_text(encoding="utf-8").replace('"', "'")


def _refusal(
    environment: Environment, interpreter: Interpreter, problems: list[Problem], what: str, remedy: str
) -> EnvironmentFault:
    head = Problem(interpreter.executable, f"{what} cannot serve as the {environment.name} environment", remedy)
    return EnvironmentFault(problems=[head, *problems])
