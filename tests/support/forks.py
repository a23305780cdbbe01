"""Processes forked from one that has imported an engine, so that a session of tests pays for the imports once.

As a script it is that one: ``forks.py BACKEND``. It has no threads and no devices; each line that it reads asks for
something, and it answers with a line.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

POLL_SECONDS = 0.05


@dataclass(eq=False)
class Forked:
    """A process, as ``subprocess.Popen`` shows one."""

    source: Source
    pid: int
    returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.source.ask("poll", self.pid)
        return self.returncode

    def wait(self) -> int:
        while (code := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Source:
    """The process that has imported `backend` and forks. It ends when this one does."""

    def __init__(self, backend: str, python: str, variables: dict[str, str]) -> None:
        command = [python, __file__, backend]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables, text=True
        )

        atexit.register(self._process.communicate)  # it reads no more, and is waited for

    def ask(self, *request: Any) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, script: Path, arguments: list[str], variables: dict[str, str], log: Path) -> Forked:
        """Run `script` with exactly these environment variables; what it prints goes to `log`."""
        return Forked(self, self.ask("start", str(script), arguments, variables, str(log)))


_sources: dict[tuple[str, str, str, str], Source] = {}


def source(backend: str, python: str, variables: dict[str, str], engine: dict[str, str]) -> Source:
    """The one for `backend` in this session, made on first use. engine: variables that its import looks at."""
    key = (backend, python, variables["PYTHONPATH"], json.dumps(engine, sort_keys=True))
    if key not in _sources:
        _sources[key] = Source(backend, python, {**variables, **engine})
    return _sources[key]


def main(backend: str) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with suppress(Exception):  # who runs it will meet the same, and says so
        if backend != "maxtext":
            patches = import_module(f"primus.backends.{backend}.patches")
            patches.apply(patches.for_device("cpu"))
        import_module(f"primus.backends.{backend}.trainer")
    children = set()
    for line in sys.stdin:
        word, *values = json.loads(line)
        answer: int | None
        if word == "start":
            answer = os.fork()
            if not answer:
                answers.close()
                os.close(0)
                _run(*values)
                return
            children.add(answer)
        else:
            pid, status = os.waitpid(values[0], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
            children.discard(pid)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for child in children:
        os.kill(child, signal.SIGKILL)


def _run(script: str, arguments: list[str], variables: dict[str, str], log: str) -> None:
    """In the fork: become `script`."""
    import runpy

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1])
