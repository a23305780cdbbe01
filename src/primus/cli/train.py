"""``primus-cli train``: from an experiment file to a finished run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from primus.cli.main import Invocation
from primus.cli.places import places_of
from primus.errors import DataError, LaunchError, UsageError

if TYPE_CHECKING:
    from primus.config.load import Resolved
    from primus.launch.direct import Direct
    from primus.launch.kubernetes import Kubernetes
    from primus.launch.places import Places
    from primus.runtime.job import Job


@click.group(help="Train a model.")
def command() -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Options:
    """The flags and arguments of ``train``."""

    config: Path
    overrides: tuple[str, ...]
    backend: str | None
    dry_run: bool
    as_json: bool
    runs_dir: Path | None

    def all_overrides(self) -> tuple[str, ...]:
        for word in self.overrides:
            if "=" not in word:
                raise UsageError(f"'{word}' is not KEY=VALUE", remedy="an override looks like train.steps=100")
        return (*self.overrides, f"backend={self.backend}") if self.backend is not None else self.overrides


FILE = click.Path(path_type=Path)
FEWER_MACHINES = "to go on with fewer, end it and give the same command on those with a smaller --nnodes"


@command.command(help="Pre-train the experiment in FILE. Running the same command again continues the run.")
@click.option("--config", type=FILE, metavar="FILE", required=True, help="Experiment file.")
@click.option("--backend", metavar="NAME", help="Training engine, over the file's.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the command; start and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="With --dry-run: print JSON.")
@click.option("--runs-dir", type=FILE, metavar="DIR", help="Where runs are kept. Default: PRIMUS_RUNS, else ./runs.")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.pass_obj
def pretrain(invocation: Invocation, /, **given: object) -> int:
    options = Options(**given)  # type: ignore[arg-type]
    places = places_of(invocation.places)
    if options.as_json and not options.dry_run:
        raise UsageError("--json prints a plan", remedy="use it together with --dry-run")
    if places.kubernetes is not None:
        return _in_cluster(options, places.kubernetes, places.direct, invocation)
    if places.slurm is not None:
        return _on_slurm(options, places, invocation)
    if options.dry_run:
        return _dry_run(options, places, invocation)
    from primus.runtime.training import train

    job = _job(options, places, invocation, _prepare(options))
    if job.place.node_rank == 0:
        _say_all_are_needed(job, "direct", FEWER_MACHINES)
    return train(job)


def _in_cluster(options: Options, place: Kubernetes, direct: Direct, invocation: Invocation) -> int:
    from primus.cli.places.kubernetes_run import inner, show, start
    from primus.launch.places import Places

    resolved = _prepared(options) if options.dry_run else _prepare(options)
    places = Places(inner(place, direct, resolved.experiment.name))
    job = _job(options, places, invocation, resolved).continued()
    _say_all_are_needed(job, "kubernetes", "with fewer it is another submission: delete this one, and a smaller -N")
    return show(place, job, as_json=options.as_json) if options.dry_run else start(place, job)


def _on_slurm(options: Options, places: Places, invocation: Invocation) -> int:
    from primus.runtime.slurm.submit import rehearse, submit

    resolved = _prepared(options) if options.dry_run else _prepare(options)
    job = _job(options, places, invocation, resolved)
    places = _with_fewest(places, resolved, job)
    if not options.dry_run:
        return submit(job, places)
    words, script = rehearse(job.continued(), places)
    commands: list[Sequence[str]] = [words]
    if places.container:  # on the first of the nodes, whose engine and image may be others than this machine's
        first = replace(job, place=replace(job.place, nnodes=places.nnodes, rdzv="HOST:PORT"))
        commands.append(first.rehearse()[0].words)
    _show(job, commands, options, script=script)
    return 0


def _with_fewest(places: Places, resolved: Resolved, job: Job) -> Places:
    """`places` with ``resilience.min_nodes`` where Slurm is asked for nodes."""
    from primus.launch.slurm import Slurm
    from primus.plan.fewer import fewest_nodes

    place = places.slurm or Slurm()
    if place.mode == "srun":
        _say_all_are_needed(job, "slurm srun", "a queued job (slurm sbatch) does with fewer")
        return places
    return replace(places, slurm=replace(place, min_nodes=fewest_nodes(resolved, job.plan, place.min_nodes)))


def _say_all_are_needed(job: Job, place: str, otherwise: str) -> None:
    from primus.plan.fewer import waits_for_all

    if note := waits_for_all(job.plan, place, otherwise):
        click.echo(f"primus-cli: {note}", err=True)


def _job(options: Options, places: Places, invocation: Invocation, resolved: Resolved) -> Job:
    from primus.plan.planner import make_plan
    from primus.runtime.job import Job
    from primus.runtime.run_directory import runs_root

    directory = runs_root(options.runs_dir) / resolved.experiment.name
    plan = make_plan(resolved, nnodes=places.nnodes, nproc=places.direct.nproc, run_directory=directory)
    return Job(plan, places.direct, invocation.argv, places.container)


def _prepare(options: Options) -> Resolved:
    """Load the experiment, after fetching and making whatever it names that is not on this machine yet."""
    from primus.config.huggingface import NotFetched
    from primus.config.load import load
    from primus.data import hub, stdlib

    overrides = options.all_overrides()
    try:
        resolved = load(options.config, overrides)
    except NotFetched as missing:
        _first(f"fetching the model {missing.init}", "data", "fetch", missing.init)
        resolved = load(options.config, overrides)
    tokenizer = resolved.experiment.data.tokenizer
    if (
        tokenizer
        and hub.is_hub_id(tokenizer)
        and not any(hub.fetched(tokenizer, what) for what in ("tokenizer", "model"))
    ):
        _first(f"fetching the tokenizer of {tokenizer}", "data", "fetch", "--tokenizer", tokenizer)
    if _uses_stdlib(resolved) and not stdlib.is_prepared():
        _first("preparing the embedded corpus", "data", "prepare", "--stdlib")
    return resolved


def _prepared(options: Options) -> Resolved:
    """Load the experiment as it is; what it names has to be on this machine."""
    from primus.config.load import load
    from primus.data import stdlib

    resolved = load(options.config, options.all_overrides())
    if _uses_stdlib(resolved) and not stdlib.is_prepared():
        raise DataError(
            "the embedded corpus is not prepared yet, so its size is not known and there is no plan",
            where="data.train",
            remedy=f"run once: {stdlib.PREPARE_COMMAND} (training does it by itself)",
        )
    return resolved


def _dry_run(options: Options, places: Places, invocation: Invocation) -> int:
    job = _job(options, places, invocation, _prepared(options)).continued()
    _say_all_are_needed(job, "direct", FEWER_MACHINES)
    rendered, note = job.rehearse()
    _show(job, [rendered.words], options)
    if note and not options.as_json:
        click.echo(f"\n{note}")
    return 0


def _show(job: Job, commands: Sequence[Sequence[str]], options: Options, *, script: str = "") -> None:
    """The plan, the commands and the batch script of a dry run."""
    from primus.plan.render import as_json, render

    if options.as_json:
        click.echo(as_json(job.plan, commands, script=script), nl=False)
        return
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    click.echo(render(job.plan, commands, script=script, width=width), nl=False)


def _uses_stdlib(resolved: Resolved) -> bool:
    data = resolved.experiment.data
    entries = data.train if isinstance(data.train, list) else [data.train]
    names = [entry if isinstance(entry, str) else entry.path for entry in entries]
    return "stdlib" in [*names, data.validation]


def _first(what: str, *arguments: str) -> None:
    """Run another verb of ours, which finds its own environment; its output and progress are the terminal's."""
    from primus.runtime.environments import import_path, provide

    provide("torch")  # the verb would make it, after the line that says what it is needed for
    click.echo(f"first, once: {what}", err=True)
    command = [sys.executable, "-P", "-m", "primus.cli", *arguments]
    ended = subprocess.run(command, env={**os.environ, **import_path()}, stdout=sys.stderr, check=False)
    if ended.returncode < 0 or ended.returncode == 130:
        raise KeyboardInterrupt
    if ended.returncode:
        raise LaunchError(
            f"{what} did not succeed: `primus-cli {shlex.join(arguments)}`", remedy="its own message above says why"
        )
