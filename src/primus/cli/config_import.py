"""``primus-cli config import``: experiment files of other systems -> ours."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from primus.cli.runs import print_json
from primus.errors import PrimusError, UsageError

if TYPE_CHECKING:
    from primus.backends.base import NativeSchema
    from primus.config.importing.convert import Import


@click.command(
    "import",
    help="Turn FILE into an experiment of this system: an experiment of the reference system (`modules: pre_trainer: "
    "...` for megatron, torchtitan or maxtext), Megatron's or MaxText's arguments in a shell script, or their keys in "
    "a YAML map. Every key that is not carried is listed with the reason.",
)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Where to. Default: stdout.")
@click.option("--overwrite", is_flag=True, help="Replace the output file that is there.")
@click.option("--hardware", metavar="NAME", help="Hardware preset. Default: the one that FILE's path speaks of.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the report (and the experiment, without --output) as JSON."
)
def command(file: Path, output: Path | None, overwrite: bool, hardware: str | None, as_json: bool) -> None:
    from primus.config.importing.convert import convert

    if output is not None and output.exists():
        if not overwrite:
            raise UsageError(f"{output} exists", remedy="choose another --output, or replace it with --overwrite")
        if file.exists() and output.samefile(file):
            raise UsageError(f"{output} is the file that is imported", remedy="choose another --output")
    result = convert(file, os.environ, _schema, hardware)
    if output is not None:
        _write(output, result.text)
    if as_json:
        print_json(_plain(result, output))
        return
    if output is None:
        click.echo(result.text, nl=False)
    for line in _report(result, output):
        click.echo(line, err=True)


def _schema(backend: str) -> NativeSchema | None:
    """The schema of the engine's own keys; None when its backend is not here."""
    from primus.backends import registry

    try:
        return registry.get(backend).native_schema()
    except PrimusError:
        return None


def _write(output: Path, text: str) -> None:
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}", remedy="choose another --output") from None


def _plain(result: Import, output: Path | None) -> dict[str, Any]:
    return {
        "file": str(result.input.path),
        "kind": result.input.kind,
        "framework": result.input.framework,
        "accepted": not result.missing,
        "carried": [
            {"key": item.setting.label, "where": item.setting.key.where, "to": list(item.to), "note": item.note}
            for item in result.carried
        ],
        "not_carried": [
            {"key": item.setting.label, "where": item.setting.key.where, "reason": item.reason, "hint": item.hint}
            for item in result.left
        ],
        "assumed": [{"key": item.target, "value": item.value, "note": item.note} for item in result.assumed],
        "differences": result.differences,
        "missing": [asdict(problem) for problem in result.missing],
        "output": str(output) if output else None,
        "experiment": None if output else result.text,
    }


def _report(result: Import, output: Path | None) -> Iterator[str]:
    from primus.config.emit import flow
    from primus.config.importing.write import grouped

    source = result.input
    count = len(result.carried) + len(result.left)
    yield f"{source.path}: {source.words}, {count} keys"
    moved = [item for item in result.carried if item.to]
    yield from _section("carried", len(moved))
    yield from _columns([(item.setting.where, item.setting.label, ", ".join(item.to), item.note) for item in moved])
    rest = [(item.note, f"{item.setting.where}  {item.setting.shown}") for item in result.carried if not item.to]
    yield from _section("nothing to carry", len(rest))
    yield from _indented(grouped(rest))
    left = [
        (f"{item.reason}{f' ({item.hint})' if item.hint else ''}", f"{item.setting.where}  {item.setting.shown}")
        for item in result.left
    ]
    yield from _section("not carried", len(left), "yellow")
    yield from _indented(grouped(left))
    yield from _section("not in the file, and set as its system would", len(result.assumed))
    yield from _columns([(item.target, flow(item.value), item.note) for item in result.assumed])
    yield from _section("not in the file, and otherwise here", len(result.differences), "yellow")
    yield from _indented(result.differences)
    yield from _section("still needed, before `config check` accepts the file", len(result.missing), "red")
    yield from _indented(f"{item.message}{f' ({item.remedy})' if item.remedy else ''}" for item in result.missing)
    yield ""
    verdict = "" if result.missing else ", accepted by `config check`"
    yield f"{output} written{verdict}" if output else f"the experiment went to stdout{verdict}"


def _section(title: str, count: int, color: str | None = None) -> Iterator[str]:
    if count:
        yield ""
        yield click.style(f"{title}: {count}", fg=color, bold=True)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    from primus.config.importing.write import printable

    return (f"  {printable(line)}" for line in lines)


def _columns(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    from primus.config.importing.write import printable

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + printable("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))).rstrip()
