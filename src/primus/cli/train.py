"""``primus-cli train``: from an experiment file to a finished run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from primus.cli.main import Invocation
from primus.cli.places import direct_of
from primus.errors import ConfigError, LaunchError, RunDirectoryError, UsageError

if TYPE_CHECKING:
    from primus.config.load import Resolved
    from primus.launch.direct import Command, Direct
    from primus.plan.plan import Plan
    from primus.runtime.lock import RunLock
    from primus.runtime.run_directory import Attempt, RunDirectory
    from primus.runtime.supervise import Interrupts, Outcome

RENDEZVOUS_SECONDS = 600.0


@click.group(help="Train a model.")
def command() -> None:
    pass


@command.command(help="Pre-train the experiment in FILE. Running the same command again continues the run.")
@click.option("--config", type=click.Path(path_type=Path), metavar="FILE", required=True, help="Experiment file.")
@click.option("--backend", metavar="NAME", help="Training engine, over the file's.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the command; start and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
@click.option("--runs-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where run directories are kept. Default: PRIMUS_RUNS, else ./runs.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.pass_obj
def pretrain(
    invocation: Invocation, config: Path, backend: str | None, dry_run: bool, as_json: bool, runs_dir: Path | None, overrides: tuple[str, ...]
) -> int:
    for word in overrides:
        if "=" not in word:
            raise UsageError(f"'{word}' is not KEY=VALUE", remedy="an override looks like train.steps=100")
    place = direct_of(invocation.places)
    if place is None:
        return 0
    if backend is not None:
        overrides = (*overrides, f"backend={backend}")
    from primus.runtime.run_directory import RunDirectory, runs_root

    root = runs_root(runs_dir)
    if dry_run:
        return _dry_run(config, overrides, place, root, as_json)
    if as_json:
        raise UsageError("--json prints a plan", remedy="use it together with --dry-run")
    resolved = _resolve(config, overrides)
    run = RunDirectory(root / resolved.experiment.name)
    plan = _plan(resolved, place, run.path)
    return _train(plan, place, run, invocation)


def _resolve(config: Path, overrides: tuple[str, ...]) -> Resolved:
    """Load the experiment, after fetching and preparing whatever it names that is not on this machine yet."""
    from primus.config.load import load
    from primus.data import stdlib

    resolved = load(config, overrides)
    if _uses_stdlib(resolved) and not stdlib.is_prepared():
        _say("preparing the embedded corpus first (once)")
        _in_torch_environment("data", "prepare", "--stdlib")
    return resolved


def _uses_stdlib(resolved: Resolved) -> bool:
    data = resolved.experiment.data
    entries = data.train if isinstance(data.train, list) else [data.train]
    names = [entry if isinstance(entry, str) else entry.path for entry in entries]
    return "stdlib" in [*names, data.validation]


def _in_torch_environment(*arguments: str) -> None:
    """Run another verb of ours where the heavy packages are; its output and progress are the terminal's."""
    from primus.runtime.environments import import_path, provide

    python = provide("torch")
    ended = subprocess.run([python, "-P", "-m", "primus.cli", *arguments], env={**os.environ, **import_path()}, check=False)
    if ended.returncode < 0 or ended.returncode == 130:
        raise KeyboardInterrupt
    if ended.returncode:
        raise LaunchError(f"`primus-cli {shlex.join(arguments)}` did not succeed", remedy="its own message above says why")


def _plan(resolved: Resolved, place: Direct, run_directory: Path) -> Plan:
    from primus.plan.planner import make_plan

    return make_plan(resolved, nnodes=place.nnodes, nproc=place.nproc, run_directory=run_directory)


def _command(plan: Plan, place: Direct, python: str, attempt: Path, run_id: str) -> Command:
    """The agent's command on this node. Everything that is not in the plan is looked up here."""
    from primus.backends import registry
    from primus.launch.direct import render
    from primus.runtime.environments import import_path
    from primus.runtime.processes import cores

    return render(
        place,
        python=python,
        attempt=attempt,
        nproc=plan.topology.nproc_per_node,
        processes=registry.get(plan.experiment.backend).processes,
        max_restarts=plan.experiment.resilience.max_restarts,
        run_id=run_id,
        env={**plan.env, **import_path()},
        cores=cores(),
        inherited=os.environ,
    )


def _dry_run(config: Path, overrides: tuple[str, ...], place: Direct, root: Path, as_json: bool) -> int:
    from primus.config.load import load
    from primus.data import stdlib
    from primus.plan.diff import check_continue
    from primus.plan.render import as_json as plan_json
    from primus.plan.render import render
    from primus.runtime.environments import get, locate
    from primus.runtime.run_directory import RunDirectory

    resolved = load(config, overrides)
    if _uses_stdlib(resolved) and not stdlib.is_prepared():
        raise ConfigError(
            "the embedded corpus has not been prepared yet, so its size is not known and there is no plan",
            where="data.train",
            remedy=f"run once: {stdlib.PREPARE_COMMAND} (training does it by itself)",
        )
    run = RunDirectory(root / resolved.experiment.name)
    plan = _plan(resolved, place, run.path)
    if earlier := run.plan():
        plan = check_continue(earlier, plan)
    attempts = run.attempts()
    attempt = run.path / "attempts" / str(attempts[-1].number + 1 if attempts else 1)
    located = locate(plan.environment)
    python = located.python if located else str(get(plan.environment).directory / "bin" / "python")
    rendered = _command(plan, place, python, attempt, f"{plan.experiment.name}-{attempt.name}")
    words = ["env", *(f"{name}={value}" for name, value in sorted(rendered.env.items())), *rendered.argv]
    if as_json:
        click.echo(plan_json(plan, [words]), nl=False)
        return 0
    click.echo(render(plan, [words], width=min(120, shutil.get_terminal_size((100, 24)).columns)), nl=False)
    if located is None:
        click.echo(f"\nThe {plan.environment} environment is not made yet: the first training makes it.")
    return 0


def _train(plan: Plan, place: Direct, run: RunDirectory, invocation: Invocation) -> int:
    from primus.runtime.environments import provide
    from primus.runtime.supervise import Interrupts

    python = provide(plan.environment)
    with Interrupts() as interrupts:
        if place.node_rank:
            return _join(plan, place, run, python, interrupts, invocation)
        with run.claim(_say) as lock:
            if earlier := run.plan():
                from primus.plan.diff import check_continue

                plan = check_continue(earlier, plan)
            if _is_complete(plan, run):
                return 0
            attempt = run.begin(plan, ["primus-cli", *invocation.argv])
            lock.announce(attempt.number, place.nnodes, place.rdzv)
            run_id = f"{plan.experiment.name}-{attempt.number}-{lock.owner.token}"
            rendered = _command(plan, place, python, attempt.directory, run_id)
            return _supervise(plan, attempt, rendered, lock, interrupts, invocation)


def _join(plan: Plan, place: Direct, run: RunDirectory, python: str, interrupts: Interrupts, invocation: Invocation) -> int:
    """A node other than the first: find the attempt that node 0 made and run this node's share of it."""
    from primus.plan.diff import differences
    from primus.plan.plan import Plan as StoredPlan
    from primus.runtime.lock import await_attempt
    from primus.runtime.run_directory import Attempt

    if _is_complete(plan, run):
        return 0
    owner = await_attempt(run.path, place.nnodes, RENDEZVOUS_SECONDS, _say)
    attempt = Attempt(run.path / "attempts" / str(owner.attempt), owner.attempt)
    first = StoredPlan.load(attempt.plan)
    if found := differences(first, plan):
        raise RunDirectoryError(
            "the experiment of this node is not the one of node 0: " + "; ".join(map(str, found[:5])),
            where=str(attempt.plan),
            remedy="give every node the same file and overrides",
        )
    rendered = _command(first, place, python, attempt.directory, f"{plan.experiment.name}-{owner.attempt}-{owner.token}")
    return _supervise(first, attempt, rendered, None, interrupts, invocation, place.node_rank)


def _is_complete(plan: Plan, run: RunDirectory) -> bool:
    """Whether there is nothing left to train; says so."""
    from primus.checkpoints.store import newest_intact

    steps = plan.experiment.train.steps
    newest, _ = newest_intact(run.path)
    if newest is None:
        return False
    if plan.experiment.checkpoint.resume == "never":
        raise RunDirectoryError(
            "this run has checkpoints, and checkpoint.resume=never would train over them",
            where=str(run.path),
            remedy="start another run (name=OTHER), or continue with checkpoint.resume=auto",
        )
    if newest.step < steps:
        return False
    click.echo(
        f"{plan.experiment.name} is complete: {newest.step:,} of {steps:,} steps, in {run.path}\n"
        f"  look     primus-cli run show {plan.experiment.name}\n"
        f"  go on    the same command with train.steps={2 * newest.step}"
    )
    return True


def _supervise(
    plan: Plan, attempt: Attempt, rendered: Command, lock: RunLock | None, interrupts: Interrupts, invocation: Invocation, node: int = 0
) -> int:
    from primus.runtime.supervise import Supervisor, environment

    supervisor = Supervisor(plan, attempt, lock.beat if lock else lambda: None, node)
    outcome = supervisor.run(rendered, environment(), interrupts)
    again = "primus-cli " + shlex.join(invocation.argv)
    return _finish(plan, attempt, outcome, again, node)


def _finish(plan: Plan, attempt: Attempt, outcome: Outcome, again: str, node: int) -> int:
    """The last screen and the exit code."""
    from primus.runtime.failure import screen

    name = plan.experiment.name
    run_directory = Path(plan.run_directory)
    report = _report(run_directory) if node == 0 else None
    if outcome.reason == "failed":
        width = shutil.get_terminal_size((100, 24)).columns
        sys.stderr.write("\n" + screen(outcome, name, attempt.logs, again, width))
        return 1
    if outcome.reason == "complete":
        lines = [f"complete: {outcome.step:,} steps in {run_directory}"]
        code = 0
    else:
        lines = [f"stopped after step {outcome.step:,}", f"  continue  {again}"]
        code = 128 + outcome.signal if outcome.signal else 0
    if report is not None:
        lines.append(f"  report    {report}")
    if node == 0:
        lines.append(f"  look      primus-cli run show {name}")
    sys.stdout.write("\n".join(lines) + "\n")
    return code


def _report(run_directory: Path) -> Path | None:
    """report.html; what goes wrong with it must not hide how the run ended."""
    from primus.errors import PrimusError
    from primus.events.report import write_report

    try:
        return write_report(run_directory)
    except (OSError, PrimusError) as error:
        _say(f"report.html was not written: {error}")
        return None


def _say(text: str) -> None:
    sys.stderr.write(f"primus-cli: {text}\n")
    sys.stderr.flush()
