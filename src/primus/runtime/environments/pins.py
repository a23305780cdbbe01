"""What an environment needs (``requirements/*.in``), what it is made from (``*.lock``), and what an interpreter has.

Nothing here imports a package it asks about, or anything outside the standard library: the bootstrap uses it before
there is any environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from primus.errors import EnvironmentFault, Problem

FILES = Path(__file__).parent / "requirements"

_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+)\s*(?:(==|>=)\s*([0-9][^\s;]*))?")

_MARKER = re.compile(r"python_version\s*(<|>=)\s*[\"'](\d+)\.(\d+)[\"']")
"""The one kind of marker that is used: engines whose newer versions want a newer Python."""

_JAX_PLUGIN = re.compile(r"jax-(?:rocm|cuda|oneapi)\d*-(?:plugin|pjrt)")

_METADATA = re.compile(r"(.+?)-([0-9][^-]*)(?:-py3[.\d]*)?\.(?:dist|egg)-info")


@dataclass(frozen=True)
class Requirement:
    """operator: ``==`` for engines, whose version must match (``1.2.*``: any build of that release); ``>=``; or empty
    for any version."""

    name: str
    operator: str = ""
    version: str = ""

    def met_by(self, found: str) -> bool:
        if self.operator == "==" and self.version.endswith(".*"):
            return f"{public(found)}.".startswith(self.version[:-1])
        if self.operator == "==":
            return public(found) == self.version
        return self.operator == "" or numbers(found) >= numbers(self.version)

    def __str__(self) -> str:
        return f"{self.name}{self.operator}{self.version}"


@dataclass(frozen=True)
class Lock:
    """The whole closure: package -> version. ``digest`` names the environments that are made from it."""

    path: Path
    digest: str
    pins: dict[str, str]

    @property
    def name(self) -> str:
        """Of the environment that it is for."""
        return self.path.stem


@dataclass(frozen=True)
class Installed:
    """site: the directory it is imported from."""

    version: str
    site: Path


@dataclass(frozen=True)
class Interpreter:
    """A Python that is there already. ``path`` is its import path. listing: what is in those directories, where they
    cannot be looked into from here."""

    executable: str
    version: tuple[int, int]
    path: tuple[str, ...]
    listing: tuple[tuple[str, ...], ...] | None = None

    def installed(self, package: str) -> Installed | None:
        """The package as it would be imported, if it is there."""
        return self.packages.get(normalized(package))

    @cached_property
    def packages(self) -> dict[str, Installed]:
        """By normalized name. Read from the names of metadata directories, which costs a listing each;
        importlib.metadata would parse every file."""
        found: dict[str, Installed] = {}
        for number, entry in enumerate(self.path):
            with suppress(OSError):
                for name in os.listdir(entry) if self.listing is None else self.listing[number]:
                    if match := _METADATA.fullmatch(name):
                        found.setdefault(normalized(match[1]), Installed(match[2], Path(entry)))
        return found


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def public(version: str) -> str:
    """Without the local part: ``2.13.0+rocm7.1`` is a build of ``2.13.0``."""
    return version.partition("+")[0]


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", public(version).partition("rc")[0]))


def read_requirements(name: str, python: tuple[int, int] = sys.version_info[:2]) -> list[Requirement]:
    """The direct requirements of environment `name` for a Python, those of the files it includes first."""
    found: list[Requirement] = []
    for line in _lines(FILES / f"{name}.in", python):
        if line.startswith("-r "):
            found += read_requirements(Path(line[3:].strip()).stem, python)
        elif match := _REQUIREMENT.match(line):
            found.append(Requirement(normalized(match[1]), match[2] or "", match[3] or ""))
    return found


def read_lock(name: str, python: tuple[int, int] = sys.version_info[:2]) -> Lock:
    """The lock of environment `name` with the versions that hold for a Python."""
    path = FILES / f"{name}.lock"
    pins = dict(line.split("==", 1) for line in _lines(path, python))
    with path.open(encoding="utf-8") as file:
        return Lock(path, file.readline().removeprefix("#").strip(), pins)


def this_interpreter() -> Interpreter:
    return Interpreter(sys.executable, sys.version_info[:2], tuple(entry for entry in sys.path if entry))


def probe(executable: str, pythonpath: str | None = None) -> Interpreter:
    """Ask another Python for its version and import path; it imports nothing. pythonpath: its ``PYTHONPATH``, if not
    this process's.

    Raises EnvironmentFault when it cannot be started.
    """
    question = "import json, sys; print(json.dumps([sys.version_info[:2], sys.path, sys.executable]))"
    variables = variables_for(executable) | ({} if pythonpath is None else {"PYTHONPATH": pythonpath})
    command = [executable, "-P", "-c", question]
    try:
        answer = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=True)
        version, path, real = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EnvironmentFault(
            f"{executable} cannot be used as a Python interpreter: {error}", remedy="name a Python 3.11 or newer"
        ) from error
    return Interpreter(real, (version[0], version[1]), tuple(entry for entry in path if entry))


def variables_for(executable: str) -> dict[str, str]:
    """This process's environment variables without what describes another Python than `executable`: PYTHONHOME, and an
    active virtual or conda environment in which it is not."""
    variables = dict(os.environ)
    if executable != sys.executable:
        variables.pop("PYTHONHOME", None)
    for root, others in (("VIRTUAL_ENV", ("VIRTUAL_ENV_PROMPT",)), ("CONDA_PREFIX", ("CONDA_DEFAULT_ENV",))):
        if root in variables and not Path(executable).is_relative_to(variables[root]):
            for name in (root, *others):
                variables.pop(name, None)
    return variables


def shortcomings(interpreter: Interpreter, needs: Iterable[Requirement], minimum: tuple[int, int]) -> list[Problem]:
    """What keeps `interpreter` from serving, one Problem a package; empty when it can be used as it is."""
    problems = []
    if interpreter.version < minimum:
        here, wanted = (".".join(map(str, version)) for version in (interpreter.version, minimum))
        problems.append(Problem("python", f"is {here}, needs {wanted} or newer"))
    for need in needs:
        distribution = interpreter.installed(need.name)
        if distribution is None:
            problems.append(Problem(need.name, f"is not installed, needs {need}"))
        elif not need.met_by(distribution.version):
            problems.append(Problem(need.name, f"is {distribution.version}, needs {need.operator}{need.version}"))
    named = {problem.where for problem in problems}
    return [*problems, *(problem for problem in plugin_mismatches(interpreter) if problem.where not in named)]


def is_jax_plugin(name: str) -> bool:
    """Whether a package gives jax a kind of devices."""
    return _JAX_PLUGIN.fullmatch(name) is not None


def plugin_mismatches(interpreter: Interpreter) -> list[Problem]:
    """Plugins that give jax its devices and are not of its release. jax passes over such a CUDA plugin with a warning,
    and loads a ROCm one without a look."""
    jax = interpreter.installed("jax")
    release = ".".join(map(str, numbers(jax.version)[:3])) if jax else ""
    return [
        Problem(name, f"is {found.version}, jax is {release}", f"pip install '{name}=={release}.*', or remove it")
        for name, found in sorted(interpreter.packages.items())
        if release and is_jax_plugin(name) and not Requirement(name, "==", f"{release}.*").met_by(found.version)
    ]


def _lines(path: Path, python: tuple[int, int]) -> Iterator[str]:
    """The lines that hold for `python`, without comments and markers."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read {path}: {error.strerror}", remedy="the installation is incomplete"
        ) from error
    for line in text.splitlines():
        content, _, marker = line.partition("#")[0].partition(";")
        if content.strip() and _holds(marker.strip(), python):
            yield content.strip()


def _holds(marker: str, python: tuple[int, int]) -> bool:
    if not marker:
        return True
    match = _MARKER.fullmatch(marker)
    if match is None:
        raise EnvironmentFault(f"this marker of a requirement is not understood: {marker}")
    bound = int(match[2]), int(match[3])
    return python < bound if match[1] == "<" else python >= bound
