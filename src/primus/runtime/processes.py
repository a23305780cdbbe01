"""Small facts about processes that the launcher, the agent and the workers share."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

RETRYABLE = 75
"""Exit code of a worker that failed, reported why, and may be started again (EX_TEMPFAIL)."""
FINAL = 78
"""Exit code of a worker whose failure a restart would only repeat (EX_CONFIG)."""
STOPPED = 128 + signal.SIGTERM
"""Exit code of an agent that was asked to stop when it had no ranks."""
PARENT = "PRIMUS_PARENT"
"""Process id of whoever started this process, in its environment."""

NODE = "PRIMUS_NODE"
"""Name of the node, from its launcher to what it starts: inside a container a host name says nothing."""

GROUP = "PRIMUS_REPLICA_GROUP"
"""Number of a rank's replica group, in its environment."""

PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process killed when the one that started it dies, however it dies: no rank trains on unattended.

    That one may be dead already, in which case the present parent is another: PARENT tells. Processes started from
    here on find this one there.
    """
    expected = int(os.environ.get(PARENT, os.getppid()))
    os.environ[PARENT] = str(os.getpid())
    if sys.platform == "linux":
        if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    else:
        threading.Thread(target=_watch, args=(expected,), daemon=True).start()
    if os.getppid() != expected:  # it died before the kernel was told
        os.kill(os.getpid(), signal.SIGKILL)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGKILL)


def node_name() -> str:
    """The node this process runs on, as its launcher, the batch system or the machine calls it."""
    return os.environ.get(NODE) or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def alive(pid: int) -> bool:
    """Whether a process of this machine exists; a zombie does not count where that can be told."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return True


def free_port() -> int:
    """A port of this machine that nobody listens on now, for what only this machine reaches."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kernel_state(pid: int) -> str:
    """What the kernel says of a process: ``S (sleeping)``, ``T (stopped)``, ...; empty where it does not say."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((line[6:].strip() for line in file if line.startswith("State:")), "")
    except OSError:
        return ""


def waiting_in(pid: int) -> str:
    """The kernel's function that a process sleeps in; empty where that is not told."""
    try:
        with open(f"/proc/{pid}/wchan", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def end_all(children: Mapping[int, subprocess.Popen[Any]], grace: float, kill_wait: float = 10.0) -> set[int]:
    """Wait `grace` seconds until the children have ended by themselves, and kill those that have not. Returns the keys
    of these. One that the kernel does not let go within `kill_wait` seconds is left behind."""
    until = time.monotonic() + grace
    while (left := _running(children)) and time.monotonic() < until:
        time.sleep(0.01)
    for key in left:
        with suppress(ProcessLookupError):
            os.kill(children[key].pid, signal.SIGKILL)
    until = time.monotonic() + kill_wait
    while _running(children) and time.monotonic() < until:
        time.sleep(0.01)
    return left


def _running(children: Mapping[int, subprocess.Popen[Any]]) -> set[int]:
    return {key for key, child in children.items() if child.poll() is None}


def cores() -> int:
    """Cores this process may use, a container's CPU limit included."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        return count
    return count


def memory_kills() -> int:
    """How often the kernel has killed for lack of memory since boot; -1 where it does not say."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    except (OSError, ValueError):
        return -1
    return -1


def memory_limit() -> int | None:
    """Bytes that the container this process is in may use; None outside of one, and without a limit."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path, encoding="ascii") as file:
                limit = int(file.read())
        except (OSError, ValueError):
            continue
        return limit if limit < 1 << 60 else None
    return None


def ending(code: int) -> str:
    """An exit status in words: ``killed by SIGSEGV``, ``exited with code 3``."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def sentence(what: str, code: int) -> str:
    """The same about `what`: ``the agent was killed by SIGSEGV``."""
    return f"{what} {'was ' if code < 0 else ''}{ending(code)}"
