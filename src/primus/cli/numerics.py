"""``primus-cli numerics``: whether two runs computed the same."""

from __future__ import annotations

import math
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primus.cli.runs import AS_JSON, RUNS_DIR, find_run, is_alive, print_json, table
from primus.errors import UsageError

if TYPE_CHECKING:
    from primus.events.comparison import Table
    from primus.events.history import RunHistory
    from primus.numerics.compare import Comparison, Pairs
    from primus.plan.diff import Difference
    from primus.plan.plan import Plan
    from primus.plan.sameness import Sameness

MOST_FREE = 8
"""Differences that do not matter shown on the screen."""


@click.group(help="Compare what runs computed.")
def command() -> None:
    pass


@dataclass(frozen=True)
class Run:
    """One side of the comparison."""

    name: str
    plan: Plan
    history: RunHistory

    @property
    def brief(self) -> str:
        experiment, steps = self.plan.experiment, self.history.steps.step
        world = self.plan.topology.world_size
        return ", ".join(
            (
                self.history.status,
                f"steps {steps[0]:,} to {steps[-1]:,}",
                experiment.backend,
                experiment.precision,
                f"{world:,} x {experiment.hardware.name}",
            )
        )

    def as_json(self) -> dict[str, Any]:
        experiment, steps = self.plan.experiment, self.history.steps.step
        return {
            "name": self.history.name,
            "directory": str(self.history.directory),
            "status": self.history.status,
            "backend": experiment.backend,
            "precision": experiment.precision,
            "world_size": self.plan.topology.world_size,
            "first_step": steps[0],
            "last_step": steps[-1],
        }


@dataclass(frozen=True)
class Compared:
    """What there is to say. band_from: who says what the band is."""

    a: Run
    b: Run
    numbers: Comparison
    plans: Sameness
    band_from: str


@command.command(
    help="Compare the losses of two runs step by step. Exit code 1 when they differ by more than the band."
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.option(
    "--band",
    type=float,
    metavar="X",
    help="Largest difference that counts as equal, nats a token. Default: 1e-5 for fp32 without experts.",
)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Write a page with charts too: .html.")
@RUNS_DIR
@AS_JSON
def compare(  # noqa: PLR0917 - the options of the command line
    first: str, second: str, band: float | None, output: Path | None, runs_dir: Path | None, as_json: bool
) -> int:
    from primus.events.comparison import curve
    from primus.numerics import compare as numbers
    from primus.plan.sameness import sameness

    if output is not None and output.suffix.lower() != ".html":
        raise UsageError(
            f"cannot write '{output.suffix or output.name}'", where="--output", remedy="use a name that ends in .html"
        )
    a, b = _runs(first, second, runs_dir)
    size, origin = _band(a.plan, b.plan, band)
    comparison = numbers.compare(curve(a.history), curve(b.history), size)
    if not comparison.training:
        raise UsageError(
            f"'{a.name}' and '{b.name}' have no step in common",
            remedy=f"A has {_span(a.history)} and B {_span(b.history)}",
        )
    found = Compared(a, b, comparison, sameness(a.plan, b.plan), origin)
    if output is not None:
        _write(output, found)
    if as_json:
        print_json(_as_json(found))
    else:
        _show(found)
        if output is not None:
            click.echo(f"\n{output}")
    return 0 if comparison.within else 1


def _runs(first: str, second: str, runs_dir: Path | None) -> tuple[Run, Run]:
    """Both runs, read. Raises UsageError: unknown, the same, without a readable plan or without a step."""
    from primus.events.history import read_run
    from primus.plan.plan import Plan

    paths = [find_run(name, runs_dir) for name in (first, second)]
    if os.path.samefile(*paths):
        raise UsageError(f"'{first}' and '{second}' are the same run", remedy="name two runs: primus-cli run list")
    alike = paths[0].name == paths[1].name
    runs = []
    for path in paths:
        name = str(path) if alike else path.name
        try:
            plan = Plan.load(path / "plan.json")
        except (OSError, ValueError) as error:
            cause = error.strerror if isinstance(error, OSError) else "it is damaged, or of another version of Primus"
            raise UsageError(
                f"the plan of run '{name}' cannot be read: {cause}",
                where=str(path / "plan.json"),
                remedy="without it nothing says what was trained: compare runs of this version of Primus",
            ) from error
        history = read_run(path, alive=is_alive(path))
        if not history.steps:
            raise UsageError(f"run '{name}' has reported no step yet", where=str(path))
        runs.append(Run(name, plan, history))
    return runs[0], runs[1]


def _band(a: Plan, b: Plan, given: float | None) -> tuple[float, str]:
    """The band and who says so. Raises UsageError where none is known and none was given."""
    from primus.numerics.bands import known_band

    if given is not None:
        if not (given >= 0 and math.isfinite(given)):
            raise UsageError(f"{given} is no band", where="--band", remedy="give a number, 0 or more, e.g. --band 1e-3")
        return given, "from --band"
    precisions: set[str] = {a.experiment.precision, b.experiment.precision}
    experts = any(plan.experiment.model.num_experts for plan in (a, b))
    known, reason = known_band(precisions, experts=experts)
    if known is None:
        raise UsageError(
            f"there is no general band for these runs: {reason}",
            remedy="say what you take for equal, in nats a token, e.g. --band 2e-2",
        )
    return known, f"for {' and '.join(precisions)} without experts"


def _span(history: RunHistory) -> str:
    return f"{history.steps.step[0]:,} to {history.steps.step[-1]:,}"


def _show(found: Compared) -> None:
    from primus.events import comparison as text

    a, b, comparison, plans = found.a, found.b, found.numbers, found.plans
    longest = max(len(a.name), len(b.name))
    for label, run in (("A", a), ("B", b)):
        name = f"{run.name:<{longest}}  " if longest <= 24 else f"{run.name}\n   "
        click.echo(f"{label}  {name}{run.brief}")
    _show_plans(plans)
    click.echo()
    _numbers(text.STEP_COLUMNS, text.step_rows(comparison))
    click.echo(click.style(text.LEGEND, dim=True))
    if rows := text.eval_rows(comparison):
        click.echo()
        _numbers(text.EVAL_COLUMNS, rows)
    if sys.stdout.isatty():
        _draw(comparison)
    click.echo()
    figures = text.summary(comparison, found.band_from)
    width = max(map(len, figures))
    colour = "red" if not comparison.within else "green" if plans.same else "yellow"
    for label, value in {**figures, "verdict": text.verdict(comparison, plans.same)}.items():
        lines = textwrap.wrap(value, max(30, _columns() - width - 2), break_on_hyphens=False)
        if label == "verdict":
            lines = [click.style(line, fg=colour, bold=True) for line in lines]
        click.echo(f"{label:<{width}}  " + f"\n{' ' * (width + 2)}".join(lines))


def _show_plans(plans: Sameness) -> None:
    click.echo()
    if plans.same:
        restriction = " in every portable key" if plans.native else ""
        click.echo(click.style(f"The plans mean the same experiment{restriction}.", fg="green"))
    tables = _tables(plans, _columns())
    if plans.same and tables:
        click.echo()
    for found in tables:
        free = found.title == FREE
        rows = found.rows[:MOST_FREE] if free else found.rows
        click.echo(click.style(f"{found.title}:", fg="yellow" if found.title == MATTERS else None, bold=not free))
        table([f"  {found.columns[0].upper()}", "A", "B"], [[f"  {key}", *values] for key, *values in rows])
        if len(rows) < len(found.rows):
            click.echo(f"  ... and {len(found.rows) - len(rows)} more: --json shows all")
        if found is not tables[-1]:
            click.echo()
    for remark in plans.remarks:
        click.echo(click.style(f"note: {remark}", fg="yellow"))


MATTERS = "The plans do not mean the same experiment; what differs and matters"
NATIVE = "Keys of the engine's own, of which Primus cannot tell whether they matter"
FREE = "What differs and may"


def _tables(plans: Sameness, columns: int) -> list[Table]:
    """What differs, what matters first. columns: how wide a table may be."""
    from primus.config.emit import flow
    from primus.events.comparison import Table

    def row(difference: Difference, room: int) -> list[str]:
        values = ["not set" if value is None else flow(value) for value in (difference.old, difference.new)]
        key = difference.key.replace("content.", "data ", 1)  # what the datasets hold; it is no key of the file
        return [key, *(text if len(text) <= room else f"{text[: room - 3]}..." for text in values)]

    parts = [(MATTERS, plans.matters), (NATIVE, plans.native), (FREE, plans.free)]
    longest = max((len(difference.key) for _, part in parts for difference in part), default=0)
    room = max(12, (columns - longest - 6) // 2)
    return [
        Table(title, ("key", "A", "B"), [row(difference, room) for difference in part]) for title, part in parts if part
    ]


def _columns() -> int:
    return min(shutil.get_terminal_size((100, 30)).columns, 140)


def _numbers(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table with its numbers to the right, all but the last column."""
    titles = [column.upper() for column in columns]
    widths = [max(len(row[index]) for row in [titles, *rows]) for index in range(len(titles) - 1)]
    aligned = [
        [*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]] for row in [titles, *rows]
    ]
    table(aligned[0], aligned[1:])


def _draw(comparison: Comparison) -> None:
    from primus.events.comparison import drawing
    from primus.events.terminal_chart import LEVEL, POINT, draw

    x, y, points, floor, level = drawing(comparison)
    size = shutil.get_terminal_size((100, 30))
    plain = "utf" not in (sys.stdout.encoding or "").lower()
    lines = draw(
        x, y, points, width=min(size.columns, 140), height=max(10, min(size.lines - 4, 18)), ascii_only=plain,
        log=True, floor=floor, level=level,
    )  # fmt: skip
    legend = f"   {'o' if plain else POINT} validation" if points else ""
    legend += f"   {'-' if plain else LEVEL} band {level:g}" if level else ""
    click.echo(f"\n|difference| of the losses, nats a token{legend}" if lines else "\nno difference is finite")
    for line in lines:
        click.echo(line)
    if broken := len(comparison.training.not_finite()):
        click.echo(click.style(f"not drawn, because not finite: {broken:,}", fg="red"))


def _write(output: Path, found: Compared) -> None:
    from primus.events.comparison import summary, write_comparison

    a, b = found.a, found.b
    keys = ", ".join(difference.key for difference in found.plans.matters[:3])
    more = ", ..." if len(found.plans.matters) > 3 else ""
    facts = {
        "A": f"{a.name}: {a.brief}",
        "B": f"{b.name}: {b.brief}",
        "plans": f"different experiments: {keys}{more}" if keys else "the same experiment",
        **summary(found.numbers, found.band_from),
    }
    tables = _tables(found.plans, 160)
    write_comparison(
        output, a.history, b.history, found.numbers,
        names=(a.name, b.name), same=found.plans.same, facts=facts, tables=tables,
    )  # fmt: skip


def _as_json(found: Compared) -> dict[str, Any]:
    comparison, plans = found.numbers, found.plans
    training = comparison.training
    parts = {"matters": plans.matters, "native": plans.native, "may_differ": plans.free}
    steps = zip(_pairs(training), comparison.grad_norm, comparison.lr, strict=True)
    return {
        "a": found.a.as_json(),
        "b": found.b.as_json(),
        "same_experiment": plans.same,
        "differences": {
            name: [{"key": one.key, "a": one.old, "b": one.new} for one in part] for name, part in parts.items()
        },
        "remarks": plans.remarks,
        "band": comparison.band,
        "band_from": found.band_from,
        "within": comparison.within,
        "first_beyond": comparison.first_beyond,
        "largest_difference": {"training": _worst(training), "evaluation": _worst(comparison.evaluation)},
        "not_finite": [training.step[index] for index in training.not_finite()],
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
        "steps": [row | {"grad_norm_relative": norm, "lr_difference": lr} for row, norm, lr in steps],
        "evaluations": _pairs(comparison.evaluation),
        "evaluations_not_compared": comparison.incomparable,
    }


def _pairs(pairs: Pairs) -> list[dict[str, Any]]:
    columns = zip(pairs.step, pairs.a, pairs.b, pairs.difference, strict=True)
    return [{"step": step, "loss_a": a, "loss_b": b, "difference": difference} for step, a, b, difference in columns]


def _worst(pairs: Pairs) -> dict[str, Any] | None:
    index = pairs.worst()
    return None if index is None else {"step": pairs.step[index], "difference": abs(pairs.difference[index])}
