"""System packages that tests need: installed when they are missing and this may be done here, else a skip with its
reason. In CI, which sets ``CI``, a part that is missing is a failure."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NoReturn

import pytest


def need(packages: list[str], programs: list[str]) -> None:
    """Have `programs` on PATH, by apt `packages` if need be; one process installs at a time."""
    os.environ["PATH"] = os.pathsep.join(dict.fromkeys([*os.environ["PATH"].split(os.pathsep), "/usr/sbin", "/sbin"]))
    with Path(tempfile.gettempdir(), "primus-tests-apt.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [program for program in programs if not shutil.which(program)]
        if not missing:
            return
        if os.geteuid() or not shutil.which("apt-get"):
            unavailable(f"{', '.join(missing)}: not installed, and only root can install packages, by apt-get")
        said = ""
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            words = ["apt-get", "-q", *command]
            said = subprocess.run(words, env=environment, capture_output=True, text=True, check=False).stderr
        still = [program for program in programs if not shutil.which(program)]
        if still:
            unavailable(f"{', '.join(still)}: apt-get install {' '.join(packages)} did not bring it: {said[-500:]}")


def unavailable(reason: str) -> NoReturn:
    """This machine cannot have what the test needs."""
    if os.environ.get("CI"):
        pytest.fail(f"missing in CI: {reason}")
    pytest.skip(reason)
