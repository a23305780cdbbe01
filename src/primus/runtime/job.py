"""What is to run: a plan, a place, and the command that comes of them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from primus.backends import registry
from primus.checkpoints.store import newest_intact
from primus.home import invoked_as
from primus.launch.direct import Command, Direct, render
from primus.plan.diff import check_continue
from primus.plan.plan import Plan
from primus.runtime.environments import get, import_path, locate
from primus.runtime.processes import cores
from primus.runtime.run_directory import Attempt, RunDirectory


@dataclass(frozen=True)
class Job:
    """What is to run. argv: the words after ``primus-cli``, shown where a person may want to repeat them."""

    plan: Plan
    place: Direct
    argv: tuple[str, ...]

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(Path(self.plan.run_directory))

    @property
    def again(self) -> str:
        return f"{invoked_as()} {shlex.join(self.argv)}"

    def continued(self) -> Job:
        """This job as the continuation of what is in its run directory; itself for a new run. Raises RunDirectoryError
        when it would train something else."""
        earlier = self.directory.plan()
        if earlier is None:
            return self
        newest, _ = newest_intact(self.directory.path)
        converted_to = newest.backend if newest else ""
        return replace(self, plan=check_continue(earlier, self.plan, converted_to=converted_to))

    def command(self, python: str, attempt: Attempt, token: str) -> Command:
        """This node's agent. token: tells apart attempts of the same number, e.g. in a directory that was deleted."""
        plan = self.plan
        processes = registry.get(plan.experiment.backend).processes
        return render(
            self.place,
            python=python,
            attempt=attempt.directory,
            nproc=1 if processes == "per_node" else plan.topology.nproc_per_node,
            processes="torchrun" if processes == "torchrun" else "plain",
            max_restarts=plan.experiment.resilience.max_restarts,
            run_id=f"{plan.experiment.name}-{attempt.number}-{token}",
            env=plan.env,
            import_path=import_path()["PYTHONPATH"],
            cores=cores(),
            inherited=os.environ,
        )

    def rehearse(self) -> tuple[Command, bool]:
        """The command that ``train`` would run now, and whether its environment is there. Writes nothing."""
        located = locate(self.plan.environment)
        python = located.python if located else str(get(self.plan.environment).directory / "bin" / "python")
        return self.command(python, self.directory.next_attempt(), "TOKEN"), located is not None
