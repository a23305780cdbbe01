"""``primus-cli run``: what was and is being trained."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from primus.cli import run_jobs
from primus.cli.run_show import print_run
from primus.cli.runs import AS_JSON, RUNS_DIR, all_runs, find_run, is_alive, print_json, root_of, table
from primus.errors import CheckpointError, PrimusError, UsageError

if TYPE_CHECKING:
    from primus.events.history import RunHistory

T = TypeVar("T")

TAIL = 1 << 20
FOLLOW_SECONDS = 0.3


@click.group(help="List, show and plot runs; read their logs.")
def command() -> None:
    pass


@command.command("list", help="The runs, with how far each is.")
@RUNS_DIR
@AS_JSON
def list_runs(runs_dir: Path | None, as_json: bool) -> int:
    """Exit code 1 when a run could not be read; the others are listed all the same."""
    from primus.events import units
    from primus.events.history import read_run

    root = root_of(runs_dir)
    rows: list[dict[str, Any]] = []
    for path in all_runs(root):
        try:
            row = _brief(read_run(path, alive=is_alive(path), tail=TAIL))
            rows.append(row | {"status": run_jobs.status(path, row["status"])})
        except PrimusError as error:
            rows.append({"name": path.name, "directory": str(path), "status": "unreadable", "problem": str(error)})
    if as_json:
        print_json(rows)
    elif not rows:
        click.echo(f"no runs in {root}")
    else:
        columns = ["NAME", "STATUS", "STEP", "LOSS", "VALIDATION", "LAST EVENT"]
        table(columns, [_row(row, units) for row in rows])
    unreadable = [row for row in rows if "problem" in row]
    for row in unreadable:
        click.echo(row["problem"], err=True)
    return 1 if unreadable else 0


def _brief(history: RunHistory) -> dict[str, Any]:
    steps = history.steps
    times = [attempt.last_record for attempt in history.attempts if attempt.last_record is not None]
    return {
        "name": history.name,
        "directory": str(history.directory),
        "status": history.status,
        "step": steps.step[-1] if steps else 0,
        "total_steps": history.total_steps,
        "loss": steps.loss[-1] if steps else None,
        "validation_loss": history.evals[-1]["loss"] if history.evals else None,
        "attempts": len(history.attempts),
        "last_event": times[-1] if times else None,
    }


def _row(row: dict[str, Any], units: Any) -> list[str]:
    if "problem" in row:
        return [row["name"], "unreadable", "", "", "", ""]
    total = "" if row["total_steps"] is None else f"/{row['total_steps']:,}"
    losses = ["-" if row[key] is None else units.loss(row[key]) for key in ("loss", "validation_loss")]
    since = "-" if row["last_event"] is None else f"{units.duration(max(0.0, time.time() - row['last_event']))} ago"
    return [row["name"], row["status"], f"{row['step']:,}{total}", *losses, since]


def _or_why(read: Callable[[], list[T]]) -> tuple[list[T], str]:
    """What `read` returns, or why it cannot be told: what else is known of a run is shown all the same."""
    try:
        return read(), ""
    except CheckpointError as error:
        return [], f"unknown: {error.problems[0].message} ({error.problems[0].where})"


@command.command(help="One run: figures, attempts, goodput, checkpoints, notices, and why it failed.")
@click.argument("name")
@RUNS_DIR
@AS_JSON
def show(name: str, runs_dir: Path | None, as_json: bool) -> None:
    from primus.checkpoints import skipped, store
    from primus.events import units
    from primus.events.goodput import as_dict
    from primus.events.history import read_run
    from primus.events.report import facts

    run = find_run(name, runs_dir)
    history = read_run(run, alive=is_alive(run))
    entries, unreadable = _or_why(lambda: store.entries(run))
    left_out, damage = _or_why(lambda: skipped.read(run))
    if as_json:
        print_json(
            _brief(history)
            | run_jobs.as_dict(run)
            | {
                "facts": facts(history),
                "tokens": history.tokens,
                "seconds": history.seconds,
                "last_step": history.steps.row(-1) if history.steps else None,
                "validation": history.evals,
                "goodput": as_dict(history.goodput),
                "attempt_list": [
                    asdict(attempt) | {"seconds": attempt.seconds, "goodput": as_dict(attempt.goodput)}
                    for attempt in history.attempts
                ],
                "checkpoints": None
                if unreadable
                else [{"step": e.step, "state": e.state, "directory": str(e.directory)} for e in entries],
                "skipped": None if damage else [asdict(entry) for entry in left_out],
                "notices": history.notices,
                "failures": history.failures,
                "garbled_lines": history.garbled,
            }
        )
        return
    lines = facts(history)
    if damage:
        lines["left out"] = damage
    elif left_out:
        samples, last = units.plural(sum(entry.count for entry in left_out), "sample"), left_out[-1]
        lines["left out"] = f"{samples}, the last for step {last.step:,}: {last.reason[:500]}"
    print_run(history, lines, [unreadable] if unreadable else [f"{entry.step:,} ({entry.state})" for entry in entries])
    run_jobs.print_jobs(run)


@command.command(help="Draw the loss here, and write the report (or FILE: .html, or the loss curve as .svg).")
@click.argument("name")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="FILE", help="Default: report.html in the run directory."
)
@RUNS_DIR
def plot(name: str, output: Path | None, runs_dir: Path | None) -> None:
    if output is not None and output.suffix.lower() not in (".html", ".svg"):
        raise UsageError(
            f"cannot write '{output.suffix or output.name}'",
            where="--output",
            remedy="use a name that ends in .html or .svg",
        )
    from primus.events.history import read_run
    from primus.events.report import write_loss_svg, write_report

    run = find_run(name, runs_dir)
    history = read_run(run, alive=is_alive(run))
    _draw(history)
    if output is not None and output.suffix.lower() == ".svg":
        click.echo(write_loss_svg(history, output))
    else:
        click.echo(write_report(run, history=history, output=output))


def _draw(history: RunHistory) -> None:
    from primus.events.terminal_chart import POINT, draw

    size = shutil.get_terminal_size((100, 30))
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    points = [(record["step"], record["loss"]) for record in history.evals]
    lines = draw(
        history.steps.step, history.steps.loss, points,
        width=min(size.columns, 140), height=max(10, min(size.lines - 4, 24)), ascii_only=plain,
    )  # fmt: skip
    legend = f"   {'o' if plain else POINT} validation" if points else ""
    click.echo(
        f"{history.name} ({history.status}): training loss, nats a token{legend}"
        if lines
        else "no step has been reported yet"
    )
    for line in lines:
        click.echo(line)


@command.command(help="Print what a rank wrote to its standard output and error.")
@click.argument("name")
@click.option("--rank", type=click.IntRange(0), default=0, show_default=True, help="Whose log.")
@click.option("--attempt", type=click.IntRange(1), help="Default: the newest.")
@click.option("--job", is_flag=True, help="What the batch system's newest job of the run printed, instead of a rank.")
@click.option("--lines", type=click.IntRange(1), metavar="N", help="Only the last N lines.")
@click.option("--follow", is_flag=True, help="Go on while the run writes; Ctrl-C ends it.")
@RUNS_DIR
def logs(  # noqa: PLR0917 - the options of the command line
    name: str, rank: int, attempt: int | None, job: bool, lines: int | None, follow: bool, runs_dir: Path | None
) -> None:
    run = find_run(name, runs_dir)
    path = run_jobs.job_log(run) if job else _log_file(run, rank, attempt)
    try:
        with path.open("rb") as stream:
            text = stream.read()
            _put(b"".join(text.splitlines(keepends=True)[-lines:]) if lines else text)
            while follow:
                alive = is_alive(run)  # asked before reading, so that nothing written in between is missed
                if text := stream.read():
                    _put(text)
                elif not alive:
                    break
                time.sleep(FOLLOW_SECONDS)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UsageError(f"the log cannot be read: {error.strerror}", where=str(path)) from error


def _put(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _log_file(run: Path, rank: int, attempt: int | None) -> Path:
    """The log of a rank. Raises UsageError that names what there is."""
    folder = run / "attempts"
    numbers = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal()) if folder.is_dir() else []
    if not numbers:
        remedy = "what its job printed: --job" if (run / "jobs").is_dir() else ""
        raise UsageError(f"run '{run.name}' has no attempts yet", remedy=remedy)
    if attempt is not None and attempt not in numbers:
        raise UsageError(f"run '{run.name}' has no attempt {attempt}", remedy=f"it has {', '.join(map(str, numbers))}")
    logs = folder / str(attempt or numbers[-1]) / "logs"
    path = logs / f"rank-{rank}.log"
    if not path.exists():
        ranks = sorted(int(p.stem.removeprefix("rank-")) for p in logs.glob("rank-*.log") if p.stem[5:].isdecimal())
        there = f"it has ranks {ranks[0]} to {ranks[-1]}" if ranks else "it wrote no rank logs"
        raise UsageError(f"attempt {attempt or numbers[-1]} of '{run.name}' has no log of rank {rank}", remedy=there)
    return path
