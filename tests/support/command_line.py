"""The command line as a user starts it, and looking at the processes that come of it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = ROOT / "tests" / "support" / "plugins"

TRIAL = """\
extends: [models/tiny_llama, hardware/cpu]
name: {name}
backend: counting
data: {{train: synthetic}}
train: {{steps: 5, global_batch_size: 8, seq_length: 64}}
optimizer: {{lr: 1e-3}}
precision: fp32
resilience: {{max_restarts: 0}}
"""


@dataclass
class Cli:
    """Starts ``./primus-cli``. env: on top of a clean environment in which this interpreter serves everything."""

    home: Path
    env: dict[str, str]
    started: list[subprocess.Popen[Any]]

    def environment(self, **more: str) -> dict[str, str]:
        return {**self.env, **more}

    def start(self, *arguments: str | Path, cwd: Path | None = None, **more: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [str(ROOT / "primus-cli"), *map(str, arguments)],
            cwd=cwd or self.home,
            env=self.environment(**more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.started.append(process)
        return process

    def __call__(
        self, *arguments: str | Path, cwd: Path | None = None, timeout: float = 120, **more: str
    ) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments, cwd=cwd, **more)
        out, err = process.communicate(timeout=timeout)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def clean_environment(home: Path) -> dict[str, str]:
    """The caller's environment without what steers Primus, torch or Python."""
    prefixes = (
        "PRIMUS_",
        "COVERAGE_",
        "TORCH",
        "COUNTING_",
        "XDG_",
        "VIRTUAL_ENV",
        "PYTHONPATH",
        "PYTHONDONTWRITEBYTECODE",
        "HF_",
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
    return {**kept, "HOME": str(home), "PRIMUS_HOME": str(home / "primus"), "OMP_NUM_THREADS": "1"}


def unmeasured(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what has child processes measured for coverage: it costs an engine's ranks up to twice the time. For runs
    whose lines other tests see, too."""
    return {name: value for name, value in environment.items() if not name.startswith("COVERAGE_")}


def wait_for(condition: Callable[[], object], seconds: float = 30.0, what: str = "it", every: float = 0.02) -> None:
    """Poll until `condition` holds, with `every` seconds between; fails the test after `seconds`."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not happen within {seconds:g} s"
        time.sleep(every)


def processes_with(text: str) -> dict[int, str]:
    """Live processes whose command line holds `text`: pid -> command line."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if text in line and (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found[int(entry.name)] = line
    return found


def environment_of(pid: int) -> Mapping[str, str]:
    """Empty when the process has just gone."""
    raw: list[bytes] = []
    with suppress(OSError):
        raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(item.decode(errors="replace").split("=", 1) for item in raw if b"=" in item)
