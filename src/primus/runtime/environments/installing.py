"""Making one environment from its lock: a virtual environment, pip, and a person who sees how far it is."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from primus.errors import EnvironmentFault, Problem
from primus.runtime.environments.integrity import STAMP, lock_file
from primus.runtime.environments.pins import Lock, normalized, variables_for

# What pip and venv say when they fail -> cause and remedy. The first that matches is shown.
CAUSES = (
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full",
        "free some space, or set PRIMUS_HOME to a larger disk",
    ),
    (
        r"ensurepip is not\s+available|No module named '?(venv|ensurepip)",
        "this Python comes without its venv module",
        "install it (on Debian and Ubuntu: apt install python3-venv), or set PRIMUS_PYTHON to another Python",
    ),
    (
        r"Permission denied|Read-only file system|Not a directory|File exists",
        "the directory cannot be written",
        "set PRIMUS_HOME to a writable directory",
    ),
    (
        r"NewConnectionError|Temporary failure in name resolution|Name or service not known|Connection refused"
        r"|timed out|Network is unreachable|ProxyError|ConnectionResetError|Failed to establish",
        "the package index cannot be reached",
        "connect to the network, or point pip at a mirror (PIP_INDEX_URL)",
    ),
    (
        r"SSLError|CERTIFICATE_VERIFY_FAILED",
        "the package index's certificate is not trusted",
        "set PIP_CERT to the right bundle",
    ),
    (
        r"No matching distribution found for (\S+)|Could not find a version that satisfies the requirement (\S+)",
        "the package index has no such version for this Python and machine",
        "check pip's index configuration (pip config list)",
    ),
)


@contextmanager
def exclusive(path: Path, waiting: str, out: TextIO) -> Iterator[int]:
    """Hold the lock file `path`; says `waiting` on `out` when another process has it. Yields the descriptor."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            out.write(waiting + "\n")
            out.flush()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def install(lock: Lock, directory: Path, python: str, out: TextIO, faults: Callable[[], list[Problem]]) -> None:
    """Make `directory` an environment of `python` with exactly the lock's packages, marked complete at the very end.

    Two processes may ask at once: the second waits and finds it without `faults`. One that has some is made anew.
    Raises EnvironmentFault naming the cause and the remedy; nothing half-made stays.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is making {directory}: waiting"
        with exclusive(lock_file(directory), waiting, out) as descriptor:
            found = faults()
            if not found:
                return
            if directory.exists():
                out.write(f"{found[0]}\n")
            Installation(lock, directory, python, out, descriptor).run()
    except OSError as error:
        raise fault(lock.name, directory, f"{error.strerror}: {error.filename or directory}", None) from error


class Installation:
    """One environment being made; `held` is the descriptor of its lock file, `python` what it is made of."""

    def __init__(self, lock: Lock, directory: Path, python: str, out: TextIO, held: int) -> None:
        self.lock, self.directory, self.python, self.out, self.held = lock, directory, python, out, held
        self.log = directory.with_name(f"{directory.name}.log")
        self.progress = Progress(out, len(lock.pins))

    def run(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        try:
            self._make()
        except BaseException:
            self.progress.close("")
            shutil.rmtree(self.directory, ignore_errors=True)
            raise

    def _make(self) -> None:
        began = time.monotonic()
        directory = self.directory
        self.out.write(
            f"Making the {self.lock.name} environment, once: {len(self.lock.pins)} packages into {directory}\n"
        )
        self.log.write_bytes(b"")
        self.progress.start()
        # -I: what the user has on PYTHONPATH or in the user site must not look like an installed package to pip.
        self._call([self.python, "-I", "-m", "venv", str(directory)])
        pip = [str(directory / "bin" / "python"), "-I", "-m", "pip", "--no-input", "--disable-pip-version-check"]
        version = next(directory.glob("lib/python3.*/site-packages/pip-*.dist-info")).name.split("-")[1]
        raw = tuple(int(part) for part in version.split(".")[:2]) >= (24, 1)
        self._call([*pip, "install", "-r", str(self.lock.path), "--progress-bar", "raw" if raw else "off"])
        (directory / STAMP).write_text(f"{self.lock.digest}\n", encoding="utf-8")
        size = sum(file.lstat().st_size for file in directory.rglob("*"))
        seconds = time.monotonic() - began
        self.progress.close(f"The {self.lock.name} environment is ready: {size / 1e6:,.0f} MB in {seconds:.0f} s")

    def _call(self, command: list[str]) -> None:
        """Run `command`, its output into the log and the progress line. The child keeps the lock: were this process
        killed, nobody could start another installation beside pip."""
        lines: list[str] = []
        with self.log.open("a", encoding="utf-8") as file:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=(self.held,),
                env={**variables_for(command[0]), "PYTHONUNBUFFERED": "1"},
            )
            assert child.stdout is not None
            try:
                for line in child.stdout:
                    if not line.startswith("Progress "):
                        file.write(line)
                        lines.append(line)
                    self.progress.take(line)
            except BaseException:
                child.kill()
                raise
            finally:
                child.wait()
        if child.returncode:
            raise fault(self.lock.name, self.directory, "".join(lines), self.log)


def fault(name: str, directory: Path, said: str, log: Path | None) -> EnvironmentFault:
    """What venv, pip or the system `said`, as a cause and a remedy."""
    head = f"the {name} environment cannot be made in {directory}"
    where = f"; pip's own words: {log}" if log else ""
    for pattern, cause, remedy in CAUSES:
        if match := re.search(pattern, said):
            what = next((f" ({group})" for group in match.groups() if group), "")
            return EnvironmentFault(f"{head}: {cause}{what}", remedy=f"{remedy}{where}")
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "no output")
    return EnvironmentFault(f"{head}: {last}", remedy=f"mend the cause and run again{where}")


class Progress:
    """How far pip is: one line that is rewritten on a terminal, a line every ten seconds elsewhere. Drawn by a thread,
    since pip says nothing while it downloads for minutes."""

    def __init__(self, out: TextIO, packages: int) -> None:
        self.out, self.packages = out, packages
        self.terminal = out.isatty()
        self.seen: set[str] = set()
        self.current, self.size = "preparing", ""
        self.began = time.monotonic()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._draw_on, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def take(self, line: str) -> None:
        """Note what a line of pip's says."""
        words = line.split()
        if line.startswith("Collecting ") and len(words) > 1:
            package = re.split(r"[=<>!~\[;]", words[1])[0]
            self.seen.add(normalized(package))
            self.current, self.size = package, ""
        elif words[:1] == ["Downloading"] and (match := re.search(r"\(([^)]*B)\)", line)):
            self.size = match[1]
        elif words[:1] == ["Progress"] and len(words) == 4 and words[3] != "0":
            self.size = f"{int(words[1]) / 1e6:.0f} of {int(words[3]) / 1e6:.0f} MB"
        elif line.startswith("Installing collected"):
            self.current, self.size = "unpacking", ""
        elif "Retrying" in line:
            self.current, self.size = "the package index does not answer, retrying", ""

    def line(self) -> str:
        count = f"{min(len(self.seen), self.packages)}/{self.packages}"
        parts = (count, self.current, self.size, f"{time.monotonic() - self.began:.0f} s")
        return "  " + "  ".join(part for part in parts if part)

    def _draw_on(self) -> None:
        wait = 0.2 if self.terminal else 10.0
        while not self._done.wait(wait):
            line = self.line()
            if self.terminal:
                line = f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}"
            self.out.write(line + ("" if self.terminal else "\n"))
            self.out.flush()

    def close(self, text: str) -> None:
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()
        self.out.write(("\r\x1b[K" if self.terminal else "") + (f"{text}\n" if text else ""))
        self.out.flush()
