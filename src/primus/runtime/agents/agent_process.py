"""The process that a launcher starts for its node: the agent, or a container engine's client that stands for it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from typing import BinaryIO

from primus.launch.direct import Command
from primus.runtime.processes import NODE, PARENT, node_name

END_SECONDS = 20.0


class AgentProcess(subprocess.Popen[bytes]):
    """Runs `command` in a session of its own, with `environment` below its variables and its output in `log`.

    Raises OSError when it cannot be started.
    """

    def __init__(self, command: Command, environment: Mapping[str, str], log: BinaryIO) -> None:
        self.end = command.end
        super().__init__(
            command.argv,
            env={**environment, **command.env, **command.secrets, PARENT: str(os.getpid()), NODE: node_name()},
            # nothing is ever written: it ends when this process does
            stdin=subprocess.PIPE if command.attached else subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )

    def kill(self) -> None:
        """End it at once, and what it stands for."""
        if self.end:
            with suppress(subprocess.TimeoutExpired, OSError):
                subprocess.run(self.end, capture_output=True, timeout=END_SECONDS, check=False)
        super().kill()
