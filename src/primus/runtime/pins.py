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

_METADATA = re.compile(r"(.+?)-([0-9][^-]*)(?:-py3[.\d]*)?\.(?:dist|egg)-info")


@dataclass(frozen=True)
class Requirement:
    """operator: ``==`` for engines, whose version must match; ``>=``; or empty for any version."""

    name: str
    operator: str = ""
    version: str = ""

    def met_by(self, found: str) -> bool:
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
    """A Python that is there already. ``path`` is its import path."""

    executable: str
    version: tuple[int, int]
    path: tuple[str, ...]

    def installed(self, package: str) -> Installed | None:
        """The package as it would be imported, if it is there."""
        return self._packages.get(normalized(package))

    @cached_property
    def _packages(self) -> dict[str, Installed]:
        """Read from the names of metadata directories, which costs a listing each; importlib.metadata would parse
        every file."""
        found: dict[str, Installed] = {}
        for entry in self.path:
            with suppress(OSError):
                for name in os.listdir(entry):
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


def read_lock(name: str) -> Lock:
    path = FILES / f"{name}.lock"
    pins = dict(line.split("==", 1) for line in _lines(path, sys.version_info[:2]))
    with path.open(encoding="utf-8") as file:
        return Lock(path, file.readline().removeprefix("#").strip(), pins)


def this_interpreter() -> Interpreter:
    return Interpreter(sys.executable, sys.version_info[:2], tuple(entry for entry in sys.path if entry))


def probe(executable: str) -> Interpreter:
    """Ask another Python for its version and import path; it imports nothing.

    Raises EnvironmentFault when it cannot be started.
    """
    question = "import json, sys; print(json.dumps([sys.version_info[:2], sys.path, sys.executable]))"
    try:
        answer = subprocess.run(
            [executable, "-P", "-c", question], capture_output=True, text=True, timeout=60, check=True
        )
        version, path, real = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise EnvironmentFault(
            f"{executable} cannot be used as a Python interpreter: {error}", remedy="name a Python 3.11 or newer"
        ) from error
    return Interpreter(real, (version[0], version[1]), tuple(entry for entry in path if entry))


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
    return problems


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
