"""Whether nodes can meet at ``--rdzv``, found out before anything waits there, and whether node 0 is still there."""

from __future__ import annotations

import errno
import socket
import time
from pathlib import Path

from primus.errors import LaunchError
from primus.launch.direct import Direct
from primus.runtime.lock import STALE_SECONDS, read_owner

LOOK_SECONDS = 2.0


def check_meeting(place: Direct, patience: float) -> None:
    """Raise LaunchError when the name is unknown for `patience` seconds or, on node 0, the port is taken."""
    if place.nnodes == 1:
        return
    host, _, port = place.rdzv.rpartition(":")
    _resolve(host.strip("[]"), place.rdzv, patience)
    if place.node_rank == 0:
        _check_port(int(port), place.rdzv)


def _resolve(host: str, rdzv: str, patience: float) -> None:
    until = time.monotonic() + patience
    while True:
        try:
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:  # UnicodeError: no name at all
            if time.monotonic() > until:
                raise LaunchError(
                    f"this machine knows no address of {host}: {getattr(error, 'strerror', None) or error}",
                    where=f"--rdzv {rdzv}",
                    remedy="give node 0's address, or a name that every node resolves (getent hosts NAME)",
                ) from error
        time.sleep(0.5)


def _check_port(port: int, rdzv: str) -> None:
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except (OSError, OverflowError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        why = "is taken on this machine" if taken else f"cannot be used: {getattr(error, 'strerror', None) or error}"
        raise LaunchError(
            f"port {port} {why}",
            where=f"--rdzv {rdzv}",
            remedy="give another port on every node; `ss -ltnp` shows who has it" if taken else "give another port",
        ) from error


class FirstNode:
    """Node 0 as another node sees it: its heartbeat in the run directory's lock. No clock is compared."""

    def __init__(self, directory: Path, token: str) -> None:
        self.path, self.token = directory / "lock", token
        self._looked = self._heard = time.monotonic()
        self._beat = 0.0

    def check(self) -> None:
        """Call often. Raises LaunchError when nothing was heard of it for STALE_SECONDS."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        if now - self._looked > STALE_SECONDS:  # this process was itself stopped for a while
            self._heard = now
        self._looked = now
        owner = read_owner(self.path)
        try:
            beat = self.path.stat().st_mtime
        except OSError:
            beat = self._beat
        if owner is not None and owner.token == self.token and beat != self._beat:
            self._beat, self._heard = beat, now
        if now - self._heard > STALE_SECONDS:
            raise LaunchError(
                f"node 0 has left this attempt: nothing was heard of its launcher for {STALE_SECONDS:.0f} s",
                where=str(self.path.parent),
                remedy="give the same command again on every node: the run continues from its newest checkpoint",
            )
