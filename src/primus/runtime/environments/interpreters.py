"""Other Pythons of this machine, for an environment that wants a newer one than runs the command line.

Only the standard library is imported: the bootstrap uses this before anything is installed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import which

from primus.errors import EnvironmentFault
from primus.runtime.environments.pins import probe

NEWEST = 14
"""Minor version of the newest Python that is looked for by name."""


def find(minimum: tuple[int, int]) -> str | None:
    """A Python of at least `minimum`: this one, else the oldest that can be started. None when there is none.

    A name on PATH may be a shim that starts nothing (pyenv's are there for every version that any project uses), so
    each candidate is run.
    """
    if sys.version_info[:2] >= minimum:
        return sys.executable
    for candidate in _candidates(minimum):
        try:
            interpreter = probe(candidate)
        except EnvironmentFault:
            continue
        if interpreter.version >= minimum:
            return interpreter.executable
    return None


def _candidates(minimum: tuple[int, int]) -> Iterator[str]:
    """Where a Python of at least `minimum` is: on PATH, beside this one, or where pyenv and uv keep theirs; the oldest
    first."""
    keepers = (
        Path(sys.base_prefix).parent,  # each version has a directory of its own there, if this one has
        Path(os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv"), "versions"),
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or os.path.expanduser("~/.local/share/uv/python")),
    )
    for minor in range(minimum[1], NEWEST + 1):
        if on_path := which(f"python3.{minor}"):
            yield on_path
        for keeper in keepers:
            yield from map(str, sorted(keeper.glob(f"*3.{minor}.*/bin/python3")))
