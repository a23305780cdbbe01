"""Which Python the ranks use in a container: the image's own when it brings the engine, else this machine's, mounted.

An image is asked by running a few lines of Python in it; nothing is imported that it does not have.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from primus.errors import EnvironmentFault, LaunchError, Problem
from primus.launch.container import Container, Host, Mount
from primus.runtime.containers import engines
from primus.runtime.environments import Environment
from primus.runtime.environments.pins import Interpreter, variables_for

SYSTEM = {Path("/"), Path("/usr"), Path("/usr/local")}
"""Prefixes that an image has files of its own under: they cannot be covered by ours."""

# For any Python 3: the image's may be an old one, which is then named.
QUESTION = """
import json, os, sys
path = [entry for entry in sys.path if os.path.isdir(entry)]
names = [[name for name in os.listdir(entry) if name.endswith("-info")] for entry in path]
print("\\n" + json.dumps([sys.executable, list(sys.version_info[:3]), path, names, [sys.prefix, sys.base_prefix]]))
"""

ASK_SECONDS = 120.0
"""An image that was never used before may have to be unpacked first."""

NEEDED = "import ctypes, json, select, socket, zlib\n"
"""What the agent and every engine import of the standard library that needs a library of the system's."""


@dataclass(frozen=True)
class Answer:
    """An interpreter, its release, and where its files are."""

    interpreter: Interpreter
    release: tuple[int, ...]
    prefixes: tuple[Path, ...]


@dataclass(frozen=True)
class Image:
    """The image of a place, and the engine that runs it."""

    container: Container
    host: Host

    def own(self, pythonpath: str) -> Interpreter | None:
        """Its own Python, ``--python`` or ``python3``, with `pythonpath`, which is mounted; None when it has none.
        Raises LaunchError when the one that was named is not there."""
        named = self.container.python or "python3"
        mounts = tuple(Mount(entry, entry, True) for entry in pythonpath.split(os.pathsep) if os.path.isdir(entry))
        answer = self._ask(named, mounts, QUESTION, pythonpath)
        if answer.code == 0:
            return _parse(answer.out).interpreter
        if self.container.python or answer.code == engines.REFUSED:
            raise LaunchError(
                f"{named} cannot be run in this image: {answer.words}",
                where=self.container.image,
                remedy="give the path of a Python that is in it" if self.container.python else "",
            )
        return None

    def serves(self, interpreter: Interpreter, environment: Environment) -> bool:
        """Whether the image's `interpreter` is the one to use: it was named, or brings the environment's engine.

        Raises EnvironmentFault with the list of what does not match when it is, but cannot serve: another one's
        packages beside the image's drivers would not be what the image was made for."""
        brought = bool(environment.engine) and interpreter.installed(environment.engine) is not None
        if not (self.container.python or brought):
            return False
        if problems := environment.shortcomings(interpreter):
            what = f"the Python of this image ({interpreter.executable}) cannot serve as the {environment.name}"
            what += " environment"
            remedy = "install these into the image, or use another image; --python PATH names another Python of it"
            raise EnvironmentFault(problems=[Problem(self.container.image, what, remedy), *problems])
        return True

    def mounts_of(self, python: str) -> tuple[Mount, ...]:
        """The files of an interpreter of this machine. Raises LaunchError unless it runs in the image as here."""
        here = of_here(python)
        mounts = mounts_of(here)
        answer = self._ask(python, mounts, NEEDED + QUESTION)
        said = f"{python} of this machine cannot be run in this image: {answer.words}"
        if answer.code == 0:
            there = _parse(answer.out)
            if there.release[:2] == here.release[:2]:
                return mounts
            ours, theirs = (".".join(map(str, answer.release)) for answer in (here, there))
            said = f"{python} is Python {theirs} in this image, and {ours} here, where its packages are from"
        remedy = "use an image with the libraries of this system, or one with its own Python and engine"
        raise LaunchError(said, where=self.container.image, remedy=remedy)

    def _ask(self, python: str, mounts: tuple[Mount, ...], question: str, pythonpath: str = "") -> engines.Answer:
        options = [word for mount in mounts for word in ("--mount", mount.option())]
        options += ["--env", f"PYTHONPATH={pythonpath}"]
        if self.host.kind == "apptainer":
            command = ["exec", "--contain", "--cleanenv", "--no-home", *options, self.container.image, python]
        else:
            command = ["run", "--rm", "--pull", "never", "--network", "none", *options]
            command += ["--entrypoint", python, self.container.image]
        return engines.ask(self.host.program, *command, "-c", question, patience=ASK_SECONDS)


def of_here(python: str) -> Answer:
    """The same of an interpreter of this machine."""
    command = [python, "-P", "-c", QUESTION]
    done = subprocess.run(command, env=variables_for(python), capture_output=True, text=True, check=True)
    return _parse(done.stdout)


def mounts_of(answer: Answer) -> tuple[Mount, ...]:
    """The files of an interpreter of this machine, its environment and base, for a container to see."""
    links = _links(Path(answer.interpreter.executable))
    roots = {*answer.prefixes, *(link.parent.parent for link in links)} - SYSTEM
    roots |= {Path(entry) for entry in answer.interpreter.path if _is_beyond(Path(entry), roots)}
    return tuple(Mount(str(root), str(root), readonly=True) for root in sorted(roots))


def _parse(text: str) -> Answer:
    executable, release, path, names, prefixes = json.loads(text.strip().splitlines()[-1])
    listing = tuple(map(tuple, names))
    interpreter = Interpreter(executable, (release[0], release[1]), tuple(path), listing)
    return Answer(interpreter, tuple(release), tuple(map(Path, prefixes)))


def _links(path: Path) -> list[Path]:
    """`path` and what it leads to, link by link."""
    found = [path]
    while found[-1].is_symlink() and len(found) < 40:
        found.append(found[-1].parent / os.readlink(found[-1]))
    return [Path(os.path.normpath(link)) for link in found]


def _is_beyond(entry: Path, roots: set[Path]) -> bool:
    return not any(entry.is_relative_to(root) for root in {*roots, *SYSTEM - {Path("/")}})
