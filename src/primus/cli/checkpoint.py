"""``primus-cli checkpoint``: what a run has saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primus.cli.runs import AS_JSON, RUNS_DIR, find_run, print_json, table
from primus.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from primus.checkpoints.store import CheckpointInfo, Entry

STEP = click.option("--step", type=click.IntRange(0), metavar="N", help="Only the checkpoint of this step.")


@click.group(help="List, verify, convert and prune checkpoints.")
def command() -> None:
    pass


@command.command("list", help="The checkpoints of a run, newest first; file sizes are checked.")
@click.argument("name")
@RUNS_DIR
@AS_JSON
def list_checkpoints(name: str, runs_dir: Path | None, as_json: bool) -> None:
    from primus.checkpoints import store
    from primus.events import units

    found = store.entries(find_run(name, runs_dir))
    if as_json:
        print_json([_plain(entry) for entry in found])
        return
    if not found:
        click.echo(f"run '{name}' has no checkpoints")
        return
    rows = []
    for entry in found:
        info = entry.info
        saved = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(info.saved)) if info else "-"
        numbers = [units.size(info.bytes), f"{info.consumed_samples:,}"] if info else ["-", "-"]
        rows.append([f"{entry.step:,}", entry.state, saved, *numbers, str(entry.directory)])
    table(["STEP", "STATE", "SAVED", "SIZE", "SAMPLES SEEN", "DIRECTORY"], rows)
    for entry in found:
        for problem in entry.problems:
            click.echo(str(problem))
        if entry.state == "partial":
            click.echo(f"{entry.directory}: never finished, or still being written; `checkpoint prune` clears old ones")


def _plain(entry: Entry) -> dict[str, Any]:
    info = entry.info
    return {
        "step": entry.step,
        "state": entry.state,
        "directory": str(entry.directory),
        "saved": info.saved if info else None,
        "bytes": info.bytes if info else None,
        "consumed_samples": info.consumed_samples if info else None,
        "problems": [str(problem) for problem in entry.problems],
    }


@command.command(help="Read and hash every file of a run's checkpoints. Exit code 1 when one is damaged.")
@click.argument("name")
@STEP
@RUNS_DIR
@AS_JSON
def verify(name: str, step: int | None, runs_dir: Path | None, as_json: bool) -> int:
    from primus.checkpoints import store
    from primus.events import units

    run = find_run(name, runs_dir)
    reports = []
    for entry in _chosen(store.entries(run), run, step):
        began = time.monotonic()
        # Without an intact manifest there is nothing to compare with: what the listing found is all there is to say.
        problems = store.verify(entry.info) if entry.state == "complete" and entry.info else list(entry.problems)
        if entry.info and entry.state == "damaged":
            problems = [*problems, *(p for p in store.verify(entry.info) if p not in problems)]
        report = _plain(entry) | {"problems": [str(problem) for problem in problems]}
        report["state"] = "damaged" if problems else "intact" if entry.info else entry.state
        reports.append(report)
        if not as_json:
            size = f"{units.size(entry.info.bytes)} in {units.duration(time.monotonic() - began)}" if entry.info else ""
            click.echo(f"step {entry.step:,}: {report['state']}  {size}".rstrip())
            for problem in problems:
                click.echo(f"  {problem}")
    if as_json:
        print_json(reports)
    elif not reports:
        click.echo(f"run '{name}' has no checkpoints")
    return 1 if any(report["state"] == "damaged" for report in reports) else 0


def _chosen(entries: list[Entry], run: Path, step: int | None) -> list[Entry]:
    chosen = [entry for entry in entries if step is None or entry.step == step]
    if step is not None and not chosen:
        there = ", ".join(f"{entry.step}" for entry in entries) or "none"
        raise UsageError(f"run '{run.name}' has no checkpoint of step {step}", remedy=f"it has {there}")
    return chosen


@command.command(help="Remove all but the newest checkpoints, and old unfinished ones.")
@click.argument("name")
@click.option("--keep", type=click.IntRange(1), required=True, metavar="N", help="How many complete checkpoints stay.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@RUNS_DIR
@AS_JSON
def prune(name: str, keep: int, dry_run: bool, runs_dir: Path | None, as_json: bool) -> None:
    from primus.checkpoints import store

    run = find_run(name, runs_dir)
    directories = store.prunable(run, keep) if dry_run else store.prune(run, keep)
    if as_json:
        print_json({"removed": [str(directory) for directory in directories], "dry_run": dry_run})
        return
    for directory in directories:
        click.echo(f"{'would remove' if dry_run else 'removed'} {directory}")
    if not directories:
        click.echo("nothing to remove")


@command.command(
    help="Write a checkpoint as a Hugging Face directory (--output), or make the run's next engine another (--to)."
)
@click.argument("name")
@STEP
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Directory to make, with config.json, safetensors and tokenizer; it must not exist.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Of the weights in --output.",
)
@click.option("--to", "backend", metavar="BACKEND", help="Backend that continues the run, optimizer state included.")
@RUNS_DIR
def convert(  # noqa: PLR0917 - the options of the command line
    name: str, step: int | None, output: Path | None, dtype: str, backend: str | None, runs_dir: Path | None
) -> None:
    """Without --step: the newest checkpoint whose files have the right sizes."""
    if (output is None) == (backend is None):
        raise UsageError("nothing says what to make" if output is None else "two things to make", remedy=_ONE_OF)
    run = find_run(name, runs_dir)

    from primus.runtime.exchange.exchanges import Exchanges
    from primus.runtime.run_directory import RunDirectory

    plan = RunDirectory(run).plan()
    exchanges = Exchanges(plan.experiment.hardware.device if plan else "cpu")
    if output is not None:
        from primus.runtime.exchange.exporting import export_huggingface

        info = _intact(run, step)
        with exchanges, _bars() as bar:
            export_huggingface(exchanges, info.directory, output, dtype=dtype, progress=bar("tensors"))
        click.echo(f"step {info.step:,} written to {output}")
        return
    assert backend is not None
    from primus.backends import registry
    from primus.runtime.exchange.moving import move, settle

    registry.get(backend)
    claim = RunDirectory(run).claim(lambda text: click.echo(text, err=True))
    with claim, exchanges, _bars() as bar:
        settle(run)
        info = _intact(run, step)  # only now: until here another process may have been saving
        aside = move(exchanges, run, info, backend, bar)
    click.echo(f"step {info.step:,} is {backend}'s now; the original is {aside.name}")
    click.echo(f"  continue  the same command with backend={backend}")


_ONE_OF = "--output DIR writes a Hugging Face directory, --to BACKEND moves the run to another engine"


def _intact(run: Path, step: int | None) -> CheckpointInfo:
    from primus.checkpoints import store

    if step is None:
        info, problems = store.newest_intact(run)
        for problem in problems:
            click.echo(f"skipped: {problem}", err=True)
    else:
        entry = _chosen(store.entries(run), run, step)[0]
        if entry.state == "partial":
            raise CheckpointError("the checkpoint was never finished", where=str(entry.directory))
        if entry.problems:
            raise CheckpointError(problems=entry.problems)
        info = entry.info
    if info is None:
        raise CheckpointError(f"run '{run.name}' has no intact checkpoint", where=str(run / "checkpoints"))
    return info


@contextmanager
def _bars() -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """What makes a progress bar of a title, and gives what moves it."""
    from rich.console import Console
    from rich.progress import Progress

    terminal = Console(stderr=True)
    with Progress(console=terminal, transient=True, disable=not terminal.is_terminal) as progress:

        def bar(title: str) -> Callable[[int, int], None]:
            task = progress.add_task(title, total=None)
            return lambda done, total: progress.update(task, completed=done, total=total)

        yield bar
