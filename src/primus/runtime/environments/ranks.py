"""Whether the interpreter in which the ranks will run has what their plan was made for. Nothing is imported in it."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from primus.errors import EnvironmentFault, Problem
from primus.runtime.environments import get
from primus.runtime.environments.pins import Interpreter, probe, public


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


def check_import_path(environment: str, python: str, pythonpath: str) -> None:
    """Raise EnvironmentFault when packages on the ranks' `pythonpath`, ours first, hide ones of their environment that
    they cannot stand in for: the user's variable is meant for another Python, most likely."""
    _, *entries = pythonpath.split(os.pathsep)
    if not entries:
        return
    interpreter = probe(python, pythonpath)
    hidden = get(environment).shortcomings(interpreter) + list(_of_another_python(interpreter, entries))
    if hidden:
        head = Problem("PYTHONPATH", f"what it adds does not fit {python}, in which the ranks run", "unset PYTHONPATH")
        raise EnvironmentFault(problems=[head, *hidden])


def _of_another_python(interpreter: Interpreter, entries: list[str]) -> Iterator[Problem]:
    """Directories among `entries` that hold modules compiled for another version of Python."""
    ours = "cp{}{}".format(*interpreter.version)
    for entry in entries:
        names = []
        for wheel in sorted(Path(entry).glob("*.dist-info/WHEEL")):
            tags = re.findall(r"^Tag: (cp3\d+)-(\S+?)-", wheel.read_text(encoding="utf-8"), re.MULTILINE)
            if tags and not any(tag == ours or abi == "abi3" for tag, abi in tags):
                names.append(wheel.parent.name.partition("-")[0])
        if names:
            listed = ", ".join(names[:4]) + (", ..." if names[4:] else "")
            version = ".".join(map(str, interpreter.version))
            yield Problem(entry, f"has packages that are compiled for another Python than {version}: {listed}")
