"""What ``primus-cli run show`` prints for people."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

import click

from primus.cli.runs import table

if TYPE_CHECKING:
    from primus.events.history import RunHistory

ROWS = 40
"""Starts shown; of more the newest."""
CHECKPOINTS = 5
"""The same."""


def print_run(history: RunHistory, facts: dict[str, str], checkpoints: list[str]) -> None:
    from primus.events import units

    total = "" if history.total_steps is None else f" of {history.total_steps:,}"
    step = f"{history.steps.step[-1]:,}" if history.steps else "0"
    lines = {"run": history.name, "status": f"{history.status}, step {step}{total}", **facts}
    older = f", and {len(checkpoints) - CHECKPOINTS:,} older" if len(checkpoints) > CHECKPOINTS else ""
    lines["checkpoints"] = (", ".join(checkpoints[:CHECKPOINTS]) or "none") + older
    lines["directory"] = str(history.directory)
    if history.garbled:
        lines["unreadable"] = units.plural(history.garbled, "line") + " of the event files"
    width = max(map(len, lines))
    for label, text in lines.items():
        click.echo(f"{label:<{width}}  {text}")
    _print_attempts(history)
    _print_goodput(history)
    _print_end(history)


def _print_attempts(history: RunHistory) -> None:
    from primus.events.attempts import rows

    shown = rows(history.attempts, running=history.status == "running")
    if not shown:
        return
    columns = ["START", "NODES", "RANKS", "STEPS", "LOST", "DURATION", "USEFUL", "ENDED"]
    lines = [[r.number, r.nodes, r.ranks, r.steps, r.lost, r.duration, r.useful, r.ended] for r in shown[-ROWS:]]
    used = sum(max(len(line[index]) for line in [columns, *lines]) + 2 for index in range(len(columns) - 1))
    room = max(24, shutil.get_terminal_size((100, 24)).columns - used)
    for line in lines:
        line[-1] = line[-1] if len(line[-1]) <= room else f"{line[-1][: room - 3]}..."
    click.echo()
    if len(shown) > ROWS:
        click.echo(f"the newest {ROWS} of {len(shown):,} starts (all with --json)")
    table(columns, lines)


def _print_goodput(history: RunHistory) -> None:
    from primus.events.goodput import lines

    if shown := lines(history.goodput):
        click.echo()
        table(["WHERE THE TIME WENT", "TIME", "SHARE"], [cells for _, *cells in shown])


def _print_end(history: RunHistory) -> None:
    if history.notices or history.cause:
        click.echo()
    for notice in history.notices[-5:]:
        _wrapped(f"notice: {notice['message'][:500]}")
    if history.cause and history.status == "failed":
        failure = history.cause
        click.echo()
        _wrapped(f"rank {failure['rank']} on {failure['node']} failed: {failure['error'][:2000]}")
        if failure.get("remedy"):
            _wrapped(failure["remedy"])
        click.echo(f"more: primus-cli run logs {history.name} --rank {failure['rank']} --attempt {failure['attempt']}")


def _wrapped(text: str) -> None:
    """Print it, for a terminal between its words; what reads a pipe gets lines whole."""
    if sys.stdout.isatty():
        text = click.wrap_text(text, shutil.get_terminal_size((100, 24)).columns, subsequent_indent="  ")
    click.echo(text)
