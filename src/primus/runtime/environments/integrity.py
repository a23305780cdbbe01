"""Whether an environment that was made from a lock is still what the lock says: read from its files, nothing started.

Only the standard library is imported: the bootstrap runs this before anything is installed.
"""

from __future__ import annotations

import csv
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path

from primus.errors import Problem
from primus.runtime.environments.pins import Interpreter, normalized, plugin_mismatches, public, read_lock

STAMP = "complete"
"""Name of the file that is written last."""


def held(directory: Path) -> bool:
    """Whether some process is making `directory` now."""
    try:
        descriptor = os.open(lock_file(directory), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # a file system without locks cannot say
        return isinstance(error, BlockingIOError)
    finally:
        os.close(descriptor)
    return False


def lock_file(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}.lock")


def interpreter(directory: Path) -> Interpreter | None:
    """The Python of `directory` and what lies in its site-packages; None when there is no such directory."""
    for site in sorted(directory.glob("lib/python3.*/site-packages")):
        minor = int(site.parent.name.removeprefix("python3."))
        return Interpreter(str(directory / "bin" / "python"), (3, minor), (str(site),))
    return None


def unusable(directory: Path) -> list[Problem]:
    """Why nothing can run in `directory`; empty when something can."""
    found = interpreter(directory)
    if found is None or not (directory / STAMP).exists():
        return [Problem(str(directory), "was never finished" if directory.exists() else "is not there")]
    python = Path(found.executable)
    if not python.exists():
        return [Problem(str(directory), f"the Python that it was made of is gone: {python.resolve()}")]
    runs = re.search(r"python3\.(\d+)$", str(python.resolve()))
    if runs and int(runs[1]) != found.version[1]:
        message = f"its Python is 3.{runs[1]} now, its packages are for 3.{found.version[1]}"
        return [Problem(str(directory), message)]
    return []


def faults(name: str, directory: Path) -> list[Problem]:
    """Why `directory` cannot serve as environment `name`; empty when it can. It costs a listing: a run asks each time.

    Packages that the lock does not name may be there, but none of another version than the lock's.
    """
    found = interpreter(directory)
    if (problems := unusable(directory)) or found is None:
        return problems
    return [*_against_lock(name, found), *plugin_mismatches(found)]


def _against_lock(name: str, found: Interpreter) -> Iterator[Problem]:
    for package, pinned in read_lock(name, found.version).pins.items():
        there = found.installed(package)
        if there is None:
            yield Problem(package, f"is gone, its lock has {pinned}")
        elif public(there.version) != public(pinned):
            yield Problem(package, f"is {there.version}, its lock has {pinned}")


def damage(found: Interpreter) -> list[Problem]:
    """Files that packages of `found` brought and that are gone or of another size, one Problem a package. Looks at
    every file: a second."""
    problems = []
    for site in map(Path, found.path):
        for record in sorted(site.glob("*.dist-info/RECORD")):
            files = list(_recorded(record))
            if bad := [path for path, size in files if not _is_there(site / path, size)]:
                name = record.parent.name.partition("-")[0]
                message = f"{len(bad):,} of its {len(files):,} files are gone or damaged, {bad[0]} first"
                problems.append(Problem(normalized(name), message))
    return problems


def _is_there(file: Path, size: str) -> bool:
    try:
        found = os.stat(file).st_size
    except OSError:
        return False
    return not size or found == int(size)


def _recorded(record: Path) -> Iterator[tuple[str, str]]:
    """Path and size of the files of one package. Compiled modules are left out: any Python may write them anew."""
    with record.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            if len(row) == 3 and not row[0].endswith((".pyc", "/RECORD")):
                yield row[0], row[2]
