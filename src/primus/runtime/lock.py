"""One run at a time in a run directory.

Two mechanisms, since directories are shared between machines: the kernel's lock on ``lock`` (gone with its holder,
however that died), and a heartbeat, the file's modification time, for file systems that do not carry locks from one
machine to another. The file's content names the owner and, once it is made, the attempt, so that other nodes find it.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from primus.errors import RunDirectoryError
from primus.runtime.processes import alive

BEAT_SECONDS = 2.0
STALE_SECONDS = 30.0
NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


@dataclass(frozen=True)
class Owner:
    """Who holds the lock. attempt: 0 until it is made. rdzv: ``HOST:PORT`` where nodes meet."""

    host: str
    pid: int
    token: str
    started: float
    attempt: int = 0
    nnodes: int = 1
    rdzv: str = ""


class RunLock:
    """The lock of a directory, its file `name`, held from construction to ``release`` or death.

    Raises RunDirectoryError naming the owner when another run holds it.
    """

    def __init__(self, directory: Path, name: str = "lock") -> None:
        self.path = directory / name
        self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.owner = Owner(socket.gethostname(), os.getpid(), uuid.uuid4().hex[:12], time.time())
        self._beaten = 0.0
        self._lost = False
        try:
            self._take()
        except BaseException:
            os.close(self.descriptor)
            raise

    def _take(self) -> None:
        kernel = True
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise self._refusal(_owner_soon(self.path)) from None
            if error.errno not in NO_LOCKS:
                raise
            kernel = False
        holder = read_owner(self.path)
        if holder and not (kernel and holder.host == self.owner.host) and self._lives(holder):
            raise self._refusal(holder)
        self._write()
        if not kernel:
            # Without the kernel's help, of two that start together the one that wrote last has it.
            time.sleep(1.0)
            winner = read_owner(self.path)
            if winner and winner.token != self.owner.token:
                raise self._refusal(winner)

    def _lives(self, holder: Owner) -> bool:
        # A pod has the name of the one that it replaces, and often its process number, but not its processes.
        if holder.host == self.owner.host and holder.pid != self.owner.pid:
            return alive(holder.pid)
        # The file system's own clock on both sides: machines disagree about the time.
        beaten = self.path.stat().st_mtime
        probe = self.path.with_name(f".clock-{self.owner.token}")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now - beaten < STALE_SECONDS

    def _refusal(self, holder: Owner | None) -> RunDirectoryError:
        if holder is None:
            who = "another process"
        else:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.started))
            who = f"{_named(holder)}, since {since},"
        remedy = "wait for it, stop it, or give this run another name (name=OTHER)"
        return RunDirectoryError(f"{who} is running here", where=str(self.path.parent), remedy=remedy)

    def announce(self, attempt: int, nnodes: int, rdzv: str) -> None:
        """Tell the other nodes which attempt to join, and where they meet."""
        self.owner = replace(self.owner, attempt=attempt, nnodes=nnodes, rdzv=rdzv)
        self._write()

    def beat(self) -> None:
        """Call often; touches the file every BEAT_SECONDS. Raises RunDirectoryError when another run has taken the
        directory meanwhile: this one's was deleted, or looked abandoned to another machine."""
        now = time.monotonic()
        if now - self._beaten >= BEAT_SECONDS:
            self._beaten = now
            holder = read_owner(self.path)
            if holder and holder.token != self.owner.token:
                self._lost = True
                raise RunDirectoryError(
                    f"{_named(holder)} has started a run here, after this one's directory was deleted or looked "
                    "abandoned: this run is ended, and what it has not saved is lost",
                    where=str(self.path.parent),
                    remedy="let that one go on, or give this run another name (name=OTHER)",
                )
            with suppress(OSError):  # a full or vanished disk shows elsewhere, and with more to say
                os.utime(self.descriptor)

    def _write(self) -> None:
        content = json.dumps(asdict(self.owner)).encode()
        os.pwrite(self.descriptor, content.ljust(512), 0)
        os.ftruncate(self.descriptor, 512)

    def release(self) -> None:
        with suppress(OSError):
            if not self._lost:
                os.ftruncate(self.descriptor, 0)
        os.close(self.descriptor)


def _named(owner: Owner) -> str:
    return f"process {owner.pid} on {owner.host}"


def read_owner(path: Path) -> Owner | None:
    """What the lock file says; None when it is empty, absent or not ours."""
    try:
        owner = Owner(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
    numbers, words = (owner.pid, owner.attempt, owner.nnodes), (owner.host, owner.token, owner.rdzv)
    ours = all(isinstance(number, int) for number in numbers) and all(isinstance(word, str) for word in words)
    return owner if ours and 0 < owner.pid < 1 << 31 and isinstance(owner.started, int | float) else None


def held_here(path: Path) -> bool:
    """Whether the RunLock `path` is held, where its owner can only be a process of this machine."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        owner = read_owner(path)
        return error.errno not in NO_LOCKS or (owner is not None and alive(owner.pid))
    finally:
        os.close(descriptor)
    return False


def _owner_soon(path: Path, patience: float = 1.0) -> Owner | None:
    """``read_owner``, of a lock that is held: between taking it and writing its name its owner needs a moment."""
    until = time.monotonic() + patience
    while (owner := read_owner(path)) is None and time.monotonic() < until:
        time.sleep(0.02)
    return owner


def hold_as_worker(directory: Path) -> int | None:
    """Mark the run directory as still written to, until this process ends. Returns the descriptor to keep open."""
    descriptor = os.open(directory / "lock.workers", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in NO_LOCKS:
            return None
        raise
    return descriptor


def wait_for_workers(
    directory: Path, say: Callable[[str], None], beat: Callable[[], None], patience: float = 60.0
) -> None:
    """Wait until no worker of an earlier attempt is left: a killed launcher's need a moment to follow it. `beat` is
    called meanwhile.

    Raises RunDirectoryError when they are still there after `patience` seconds.
    """
    descriptor = os.open(directory / "lock.workers", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    began = time.monotonic()
    said = False
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in NO_LOCKS:
                    return
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                    raise
            beat()
            waited = time.monotonic() - began
            if waited > patience:
                raise RunDirectoryError(
                    f"worker processes of an earlier run are still here after {patience:.0f} s",
                    where=str(directory),
                    remedy="end them (ps -ef | grep primus.runtime.worker), or use another name (name=OTHER)",
                )
            if waited > 1.0 and not said:
                say("waiting for the processes of an earlier, killed run to end")
                said = True
            time.sleep(0.1)
    finally:
        os.close(descriptor)


def await_attempt(directory: Path, nnodes: int, timeout: float, say: Callable[[str], None]) -> Owner:
    """On nodes other than the first: the attempt that node 0 has announced in the shared run directory.

    What a dead run left is not taken for one: the heartbeat has to move, or another owner to appear, while we wait.
    Raises RunDirectoryError after `timeout` seconds.
    """
    path = directory / "lock"
    first = read_owner(path)
    first_beat = _modified(path)
    began = time.monotonic()
    reminded = began
    while True:
        owner = read_owner(path)
        if owner and owner.attempt and (owner.token != (first.token if first else "") or _modified(path) != first_beat):
            if owner.nnodes != nnodes:
                raise RunDirectoryError(
                    f"node 0 ({owner.host}) runs on {owner.nnodes} nodes, this node was told --nnodes {nnodes}",
                    where=str(directory),
                    remedy="give the same --nnodes on every node",
                )
            return owner
        now = time.monotonic()
        if now - began > timeout:
            raise RunDirectoryError(
                f"node 0 has not started this run within {timeout:.0f} s",
                where=str(directory),
                remedy="start the same command there with --node-rank 0; the run directory must be shared by all nodes",
            )
        if now - reminded > 10:
            reminded = now
            say(f"waiting for node 0 to start the run in {directory} ({now - began:.0f} s)")
        time.sleep(0.2)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
