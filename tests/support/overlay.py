"""One package more, or another version of it, before everything else on the path of processes that are to have it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from primus.home import primus_home
from primus.runtime.environments.installing import exclusive


def overlay(package: str, version: str) -> Path:
    """A directory with this `package` and nothing else, made once. Its Python requirement is set aside."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    directory = primus_home() / "envs" / f"{package}-{version}-python{python}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.with_name(directory.name + ".lock"), f"waiting for {directory}", sys.stderr):
        if not directory.is_dir():
            part = directory.with_name(directory.name + ".part")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--ignore-requires-python", "--target", str(part), f"{package}=={version}"]
            subprocess.run(command, check=True)
            part.rename(directory)
    return directory
