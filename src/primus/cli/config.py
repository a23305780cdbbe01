"""``primus-cli config``: show, check, compare and import experiment files; the key reference."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click

from primus.cli import config_import
from primus.config.load import Resolved, load
from primus.config.report import show as show_error
from primus.errors import ConfigError, PrimusError, UsageError

FILES = click.argument("arguments", nargs=-1, metavar="FILE [KEY=VALUE]...")
CONFIG = click.option("--config", "configs", multiple=True, metavar="FILE", help="Another way to name the file.")
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(name="config")
def command() -> None:
    """Show, check, compare and import experiment files; print the key reference."""


command.add_command(config_import.command)


@command.command()
@FILES
@CONFIG
@click.option("--why", metavar="KEY", help="Where the value of KEY (or each key of a section) comes from.")
@click.option("--all", "everything", is_flag=True, help="Keys that are not set, too.")
@JSON
def show(
    arguments: tuple[str, ...], configs: tuple[str, ...], why: str | None, everything: bool, as_json: bool
) -> None:
    """Print the resolved experiment: a complete file, with the origin of every value beside it."""
    from primus.config import show as view

    files, overrides = _split(arguments, configs)
    resolved = load(_only(files), overrides)
    if why is not None:
        _print_why(resolved, why, as_json)
    elif as_json:
        origins = {key: str(origin) for key, origin in resolved.origins.items()}
        experiment = resolved.experiment.model_dump(mode="json", by_alias=True)
        click.echo(json.dumps({"experiment": experiment, "origins": origins}, indent=2))
    else:
        for line, comment in view.aligned(view.as_yaml(resolved, everything=everything)):
            click.echo(line + click.style(comment, dim=True))


def _print_why(resolved: Resolved, key: str, as_json: bool) -> None:
    from primus.config import show as view
    from primus.config.emit import flow
    from primus.config.keys import keys

    answers = view.why(resolved, key)
    if as_json:
        entries = [
            {"key": name, "value": value, "layers": [{"value": item, "origin": origin} for item, origin in layers]}
            for name, value, layers in answers
        ]
        click.echo(json.dumps(entries, indent=2))
        return
    for name, value, layers in answers:
        click.echo(f"{click.style(name, bold=True)}: {flow(value)}")
        click.echo(f"  from {layers[0][1]}")
        for item, origin in layers[1:]:
            click.echo(f"  instead of {flow(item)} from {origin}")
        if len(answers) == 1 and name in keys():
            described = keys()[name]
            click.echo(f"  {described.field.description}\n  Takes {described.expected}.")


@command.command()
@FILES
@CONFIG
@JSON
def check(arguments: tuple[str, ...], configs: tuple[str, ...], as_json: bool) -> int:
    """Check experiment files and say everything that is wrong with them. Exit code 2 when something is."""
    files, overrides = _split(arguments, configs)
    if not files:
        raise UsageError("which file?", remedy="primus-cli config check FILE...")
    failures: dict[str, PrimusError] = {}
    resolved: dict[str, Resolved] = {}
    for name in files:
        try:
            resolved[name] = load(name, overrides)
        except ConfigError as error:
            failures[name] = error
        if as_json:
            continue
        if name in failures:
            sys.stdout.flush()
            show_error(failures[name])
        else:
            set_keys = sum(origin.kind != "default" for origin in resolved[name].origins.values())
            click.echo(f"{name}: {click.style('ok', fg='green')}, {set_keys} keys set")
    if as_json:
        report = [
            {"file": name, "ok": name not in failures, "problems": _problems(failures.get(name))} for name in files
        ]
        click.echo(json.dumps(report, indent=2))
    elif failures and len(files) > 1:
        click.echo(f"{len(failures)} of {len(files)} files have problems", err=True)
    return 2 if failures else 0


def _problems(error: PrimusError | None) -> list[dict[str, str]]:
    found = error.problems if error else ()
    return [{"where": item.where, "message": item.message, "remedy": item.remedy} for item in found]


@command.command()
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@JSON
def diff(first: str, second: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print the keys whose resolved values differ between the experiments A and B. Overrides apply to both."""
    from primus.config import show as view
    from primus.config.emit import flow

    left, right = load(first, overrides), load(second, overrides)
    changes = view.difference(left, right)
    if as_json:
        entries: list[dict[str, Any]] = []
        for key, before, after in changes:
            sides = {"a": before, "b": after}
            entries.append({"key": key, **{side: value for side, value in sides.items() if value is not ...}})
        click.echo(json.dumps(entries, indent=2))
        return
    for key, before, after in changes:
        shown = [click.style("not set", dim=True) if value in (..., None) else flow(value) for value in (before, after)]
        places = " -> ".join(str(side.origins.get(key, "-")) for side in (left, right))
        click.echo(f"{key}: {shown[0]} -> {shown[1]}  {click.style(f'# {places}', dim=True)}")
    if not changes:
        click.echo(f"{first} and {second} resolve to the same values")


@command.command()
@click.option("--format", "form", type=click.Choice(["markdown", "json-schema"]), default="markdown", show_default=True)
def reference(form: str) -> None:
    """Print every key with its type, default and meaning, or the JSON schema for editors."""
    from primus.config import reference as pages

    click.echo(pages.markdown() if form == "markdown" else pages.json_schema(), nl=False)


def _split(arguments: tuple[str, ...], configs: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Files and overrides. What holds a '=' is an override, unless it is a file that exists."""
    files, overrides = list(configs), []
    for argument in arguments:
        if "=" in argument and not os.path.exists(argument):
            overrides.append(argument)
        else:
            files.append(argument)
    return files, overrides


def _only(files: list[str]) -> Path:
    if len(files) != 1:
        said = f"{len(files)} files were named" if files else "no file was named"
        raise UsageError(f"one experiment file is needed, but {said}", remedy="an override is written key=value")
    return Path(files[0])
