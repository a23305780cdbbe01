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
from typing import NoReturn

from primus.errors import EnvironmentFault, PrimusError, Problem
from primus.home import primus_home
from primus.runtime.installing import STAMP, install
from primus.runtime.interpreters import find
from primus.runtime.pins import (
    Interpreter,
    Lock,
    probe,
    public,
    read_lock,
    read_requirements,
    shortcomings,
    this_interpreter,
)

REEXECUTED = "PRIMUS_REEXECUTED"
"""Set while a command line has been handed to another interpreter: it is not handed on twice."""


@dataclass(frozen=True)
class Environment:
    name: str
    summary: str
    python: tuple[int, int]
    apart: bool = False
    """No interpreter holds it beside the others': PRIMUS_PYTHON serves it if it has its engine, and need not."""

    @property
    def lock(self) -> Lock:
        return read_lock(self.name)

    @property
    def directory(self) -> Path:
        """Where it is made; another lock, another directory."""
        return primus_home() / "envs" / f"{self.name}-{self.lock.digest}"

    @property
    def made(self) -> bool:
        return (self.directory / STAMP).exists() and (self.directory / "bin" / "python").exists()

    def shortcomings(self, interpreter: Interpreter) -> list[Problem]:
        return shortcomings(interpreter, read_requirements(self.name, interpreter.version), self.python)


ENVIRONMENTS = {
    environment.name: environment
    for environment in (
        Environment("launcher", "command line, configuration, plans", (3, 11)),
        Environment("torch", "training on PyTorch: TorchTitan, Megatron, tokenizers, datasets", (3, 11)),
        Environment("jax", "training on JAX: MaxText", (3, 12), apart=True),
        Environment("dev", "torch, and what the tests, linters and documentation checks need", (3, 11)),
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
    ``python3`` on PATH that brings its own torch (a ROCm image's). Raises EnvironmentFault with the list of what does
    not match when PRIMUS_PYTHON, or a ROCm build of torch, was there but cannot serve.
    """
    environment = get(name)
    if chosen := os.environ.get("PRIMUS_PYTHON"):
        interpreter = probe(chosen)
        problems = environment.shortcomings(interpreter)
        if not problems:
            return Located(interpreter.executable, "PRIMUS_PYTHON")
        if not environment.apart or interpreter.installed(name):
            raise _refusal(
                environment, interpreter, problems, "(PRIMUS_PYTHON)", "install these, or unset PRIMUS_PYTHON"
            )
    if not environment.shortcomings(this_interpreter()):
        return Located(sys.executable, "this interpreter")
    found = _active()
    for interpreter in found:
        if not environment.shortcomings(interpreter):
            return Located(interpreter.executable, "active virtual environment")
    if environment.made:
        return Located(str(environment.directory / "bin" / "python"), "made from its lock")
    return None if name == "launcher" else _brought_along(environment, found)


def _brought_along(environment: Environment, found: list[Interpreter]) -> Located | None:
    """A ``python3`` on PATH that has what is needed. Raises EnvironmentFault beside a ROCm torch that cannot serve."""
    if on_path := which("python3"):
        found = [*found, probe(on_path)]
        if not environment.shortcomings(found[-1]):
            return Located(found[-1].executable, "python3 on PATH")
    for interpreter in filter(_is_rocm, found):
        # Making our own here would put whatever build pip finds first, CUDA perhaps, beside a ROCm one.
        remedy = f"install these; or point pip at a ROCm build and run: primus-cli env create {environment.name}"
        problems = environment.shortcomings(interpreter)
        raise _refusal(environment, interpreter, problems, "has a ROCm build of torch but", remedy)
    return None


def create(name: str) -> str:
    """Make environment `name` from its lock unless it is there. Returns its interpreter."""
    environment = get(name)
    if not environment.made:
        python = find(environment.python)
        if python is None:
            wanted = ".".join(map(str, environment.python))
            raise EnvironmentFault(
                f"the {name} environment needs Python {wanted} or newer, and none was found",
                remedy=f"install one so that python{wanted} is on PATH, e.g. `apt install python{wanted} "
                f"python{wanted}-venv` or `uv python install {wanted}`",
            )
        install(environment.lock, environment.directory, python, sys.stderr)
    return str(environment.directory / "bin" / "python")


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
    os.execve(python, [python, "-P", "-m", "primus.cli", *argv], {**os.environ, **import_path(), REEXECUTED: name})


def import_path() -> dict[str, str]:
    """``PYTHONPATH`` with which another interpreter imports this very package, and what the user put there."""
    ours = str(_importable_parent())
    others = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != ours]
    return {"PYTHONPATH": os.pathsep.join([ours, *others])}


def _importable_parent() -> Path:
    """A directory that holds the package ``primus`` and nothing that could shadow another environment's packages: the
    checkout's ``src``, or for an installed package a directory with a link to it."""
    package = Path(__file__).resolve().parents[1]
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


def engine_mismatches(interpreter: Interpreter, engine: dict[str, str]) -> list[Problem]:
    """Packages of which `interpreter` holds another version than the plan was made for."""
    problems = []
    for package, version in engine.items():
        distribution = interpreter.installed(package)
        found = distribution.version if distribution else "missing"
        if public(found) != public(version):
            problems.append(Problem(package, f"is {found}, the plan was made for {version}"))
    return problems


def check_backend(name: str, python: str) -> None:
    """Raise EnvironmentFault when the ranks' interpreter would not find backend `name`, a plugin that this one has."""
    from importlib.metadata import entry_points

    from primus.backends.registry import BUILT_IN, GROUP

    if name in BUILT_IN or Path(python) == Path(sys.executable):
        return
    packages = [point.dist.name for point in entry_points(group=GROUP, name=name) if point.dist]
    interpreter = probe(python)
    missing = [package for package in packages if interpreter.installed(package) is None]
    if missing:
        raise EnvironmentFault(
            f"backend '{name}' is in {sys.executable} but not in {python}, in which the ranks run",
            remedy=f"install {missing[0]} there too; or set PRIMUS_PYTHON to an interpreter that has everything",
        )


def main() -> NoReturn:
    """``python -m primus.runtime.environments NAME``: what the bootstrap calls when there is nothing yet."""
    try:
        create(sys.argv[1])
    except PrimusError as error:
        sys.stderr.write(f"primus-cli: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("\nprimus-cli: interrupted; the next call starts over\n")
        sys.exit(130)
    sys.exit(0)


if __name__ == "__main__":
    main()
