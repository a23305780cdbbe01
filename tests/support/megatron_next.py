"""The newer megatron-core beside the one of the lock: what Python 3.12 gets, put before everything else on the path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from primus.home import primus_home
from primus.runtime.installing import exclusive

VERSION = "0.19.2"


def overlay() -> Path:
    """A directory with megatron-core 0.19.2 and nothing else, made once. Its Python requirement is set aside: what this
    project uses of it also runs on 3.11."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    directory = primus_home() / "envs" / f"megatron-core-{VERSION}-python{python}"
    directory.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(directory.with_name(directory.name + ".lock"), f"waiting for {directory}", sys.stderr):
        if not directory.is_dir():
            part = directory.with_name(directory.name + ".part")
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--ignore-requires-python", "--target", str(part), f"megatron-core=={VERSION}"]
            subprocess.run(command, check=True)
            part.rename(directory)
    return directory
