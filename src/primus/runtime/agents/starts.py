"""The starts of an attempt on several nodes: the agents agree in its directory on which one they are in.

``starts/K/node-N`` says that node N takes part in start K. A node begins a start by saying so and the others follow;
none starts its ranks before all are there. No clock is compared: those of nodes may be apart.
"""

from __future__ import annotations

import os
import time

from primus.errors import LaunchError
from primus.runtime.agents.agent import Task

LOOK_SECONDS = 1.0
"""Between two looks into the shared directory while ranks run: it has to serve every node."""
MEETING_SECONDS = 600.0


class Starts:
    """What one node knows of them. ``current``: the start in which its ranks are, from 0."""

    def __init__(self, task: Task) -> None:
        group = "" if task.replica_group is None else f"-group{task.replica_group}"
        self.directory, self.nnodes, self.name = task.attempt / f"starts{group}", task.nnodes, f"node-{task.node_rank}"
        self.current = -1
        self._looked = 0.0

    def meet(self) -> int:
        """Take part in the next start, or in a later one that another node has begun; wait until every node is there.
        Returns which. Raises LaunchError after MEETING_SECONDS."""
        wanted, until = self.current + 1, time.monotonic() + MEETING_SECONDS
        if self.nnodes > 1 and self.current < 0:
            newest = self._newest()  # an agent that was itself started again begins another one
            wanted = newest + (self.directory / str(newest) / self.name).exists()
        while self.nnodes > 1:
            wanted = max(wanted, self._newest())
            folder = self.directory / str(wanted)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / self.name).touch()
            absent = {f"node-{rank}" for rank in range(self.nnodes)}.difference(os.listdir(folder))
            if not absent:
                break
            if time.monotonic() > until:
                there = f"{self.nnodes - len(absent)} of {self.nnodes} nodes are here after {MEETING_SECONDS:.0f} s"
                numbers = ", ".join(map(str, sorted(int(name.removeprefix("node-")) for name in absent)))
                raise LaunchError(
                    f"{there}; still missing: {numbers}",
                    where=str(folder),
                    remedy="give the same command again on every node, each with its own --node-rank",
                )
            time.sleep(0.1)
        self.current = wanted
        return wanted

    def superseded(self) -> bool:
        """Whether another node has begun a later start. Looks at most every LOOK_SECONDS."""
        now = time.monotonic()
        if self.nnodes == 1 or now - self._looked < LOOK_SECONDS:
            return False
        self._looked = now
        return self._newest() > self.current

    def _newest(self) -> int:
        """0 when there is none yet."""
        try:
            return max((int(name) for name in os.listdir(self.directory) if name.isdecimal()), default=0)
        except FileNotFoundError:
            return 0
