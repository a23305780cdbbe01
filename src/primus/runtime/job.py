"""What is to run: a plan, a place, and the command that comes of them."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from primus.backends import registry
from primus.checkpoints.store import newest_intact
from primus.config.units import seconds
from primus.home import invoked_as
from primus.launch.container import Container
from primus.launch.direct import Command, Direct, render
from primus.plan.diff import check_continue
from primus.plan.plan import Plan
from primus.runtime import monitoring
from primus.runtime.containers.contained import Contained, prepare, rehearse
from primus.runtime.environments import get, import_path, locate, provide
from primus.runtime.environments.ranks import check_backend, check_import_path
from primus.runtime.processes import cores
from primus.runtime.run_directory import Attempt, RunDirectory, runs_root


@dataclass(frozen=True)
class Job:
    """What is to run. argv: the words after ``primus-cli``, shown where a person may want to repeat them. container:
    what the agent runs in; contained: the same, once it is ready."""

    plan: Plan
    place: Direct
    argv: tuple[str, ...]
    container: Container | None = None
    contained: Contained | None = None

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(Path(self.plan.run_directory))

    @property
    def again(self) -> str:
        return f"{invoked_as()} {shlex.join(self.argv)}"

    def look(self, verb: str) -> str:
        """The command line of ``run VERB`` for this run, wherever runs are kept by default."""
        directory = self.directory.path
        away = [] if runs_root(None) == directory.parent else ["--runs-dir", str(directory.parent)]
        return f"{invoked_as()} {shlex.join(['run', verb, directory.name, *away])}"

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
        plan, place, resilience = self.plan, self.place, self.plan.experiment.resilience
        if self.container:
            chosen = {name: value for name, value in self.container.env.items() if value is not None}
            place = replace(place, env={**chosen, **place.env})
        processes = registry.get(plan.experiment.backend).processes
        command = render(
            place,
            python=python,
            attempt=attempt.directory,
            nproc=registry.ranks_per_node(plan),
            processes="torchrun" if processes == "torchrun" else "plain",
            max_restarts=resilience.max_restarts,
            restart_window=seconds(resilience.restart_window),
            replica_groups=plan.topology.replica_groups,
            run_id=f"{plan.experiment.name}-{attempt.number}-{token}",
            env=plan.env,
            import_path=import_path()["PYTHONPATH"],
            cores=cores(),
            inherited=os.environ,
        )
        return self.contained.wrap(command, plan, attempt, token, place) if self.contained else command

    def ready(self) -> tuple[Job, str]:
        """This job with all that it needs on this machine, which is found or made, and the interpreter of its ranks."""
        monitoring.prepare(self.plan)
        if self.container:
            contained = prepare(self.container, self.plan)
            return replace(self, contained=contained), contained.python
        environment, backend = self.plan.environment, self.plan.experiment.backend
        python = provide(environment)
        check_backend(backend, python)
        check_import_path(environment, python, import_path()["PYTHONPATH"])
        return self, python

    def remove_leftovers(self) -> None:
        """End what an earlier, killed launcher of this run may have left where killing it does not reach."""
        if self.contained:
            self.contained.remove_leftovers(self.directory.path)

    def rehearse(self) -> tuple[Command, str]:
        """The command that ``train`` would run now, and what it would have to do or find out first, in words. Writes
        nothing."""
        if self.container:
            contained, note = rehearse(self.container, self.plan)
            job, python = replace(self, contained=contained), contained.python
        else:
            environment = get(self.plan.environment)
            located = locate(environment.name)
            job, python = self, located.python if located else environment.executable
            note = "" if located else environment.to_come
        notes = "\n".join(filter(None, (note, monitoring.rehearse(self.plan))))
        return job.command(python, self.directory.next_attempt(), "TOKEN"), notes
