"""``primus-cli env``: the Python environments."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from primus.backends import registry
from primus.backends.base import environment_on
from primus.errors import EnvironmentFault, PrimusError, Problem
from primus.home import invoked_as
from primus.runtime.environments import ENVIRONMENTS, Environment, Located, create, get, integrity, locate, provide
from primus.runtime.environments.interpreters import find
from primus.runtime.environments.pins import Interpreter, is_jax_plugin, probe, read_requirements, variables_for

NAME = click.argument("name", type=click.Choice(list(ENVIRONMENTS)))
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
LISTED = 4
"""Problems that a list shows of one environment."""
COLOURS = {"ready": "green", "ok": "green", "not made": None, "being made": "yellow"}
"""Of states; others are red."""

TORCH_DEVICES = """
import json, torch
kind = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"engine": "torch", "build": kind, "devices": names, "threads": torch.get_num_threads()}))
"""
JAX_DEVICES = """
import json, jax
platform = jax.default_backend()
names = [device.device_kind for device in jax.local_devices()] if platform != "cpu" else []
print(json.dumps({"engine": "jax", "build": platform, "devices": names}))
"""


@click.group(help="List, make and check the Python environments.")
def command() -> None:
    pass


@dataclass(frozen=True)
class Backends:
    """Which backends train in which environment. served: environment -> backend -> kinds of devices, all of its own
    or those that are listed. problems: plugins that cannot be asked, or name an environment that there is not."""

    served: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    partly: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def known(cls) -> Backends:
        found = cls()
        for name in registry.names():
            try:
                backend = registry.get(name)
                devices = sorted(backend.capabilities().precisions)
            except PrimusError as error:
                found.problems.extend(error.problems)
                continue
            needed = {device: environment_on(backend, device) for device in devices}
            if len(set(needed.values())) > 1:
                found.partly.add(name)
            for device, environment in needed.items():
                found.served.setdefault(environment, {}).setdefault(name, []).append(device)
            found.problems.extend(
                Problem(f"backend '{name}'", f"trains in an environment '{environment}', which there is not")
                for environment in sorted({*needed.values()} - ENVIRONMENTS.keys())
            )
        return found

    def of(self, environment: str) -> str:
        """In words: ``megatron, torchtitan``; ``maxtext on cpu``."""
        served = self.served.get(environment, {})
        return ", ".join(
            f"{name} on {' and '.join(kinds)}" if name in self.partly else name for name, kinds in served.items()
        )


@dataclass(frozen=True)
class Status:
    """Where an environment stands: what serves it, or why nothing does."""

    environment: Environment
    located: Located | None
    refused: tuple[Problem, ...] = ()

    @classmethod
    def of(cls, name: str) -> Status:
        try:
            return cls(get(name), locate(name))
        except EnvironmentFault as fault:
            return cls(get(name), None, fault.problems)

    @property
    def state(self) -> str:
        if self.located:
            return "ready"
        made = self.environment.state
        return made if made == "broken" or not self.refused else "refused"

    @property
    def problems(self) -> list[Problem]:
        """Why it is not ready, and what to do."""
        if self.refused:
            return list(self.refused)
        if self.state == "unusable":
            again = "the next command that needs it makes it anew"
            return [Problem(each.where, each.message, again) for each in integrity.unusable(self.environment.directory)]
        return []

    @property
    def prospect(self) -> str:
        """What will become of one that is not there."""
        if self.state == "being made":
            return "some process is at it"
        wanted = ".".join(map(str, self.environment.python))
        python = find(self.environment.python)
        if python is None:
            return f"needs Python {wanted} or newer, and none was found"
        return f"made when first needed, with {'this Python' if python == sys.executable else _short(python)}"


@command.command("list", help="Which environments there are, what serves each, and which backends train in it.")
@JSON
def list_environments(as_json: bool) -> None:
    rows, backends = [Status.of(name) for name in ENVIRONMENTS], Backends.known()
    if as_json:
        _print_json([_row(row, backends) for row in rows])
        return
    cells = [("ENVIRONMENT", "STATE", "BACKENDS", "FOR")]
    cells += [(r.environment.name, r.state, backends.of(r.environment.name), r.environment.summary) for r in rows]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    for line, row in zip(cells, [None, *rows], strict=True):
        first, state, served = (cell.ljust(width) for cell, width in zip(line, widths, strict=False))
        click.echo("  ".join([first, _coloured(state) if row else state, served, line[3]]).rstrip())
        if row:
            _show_more(row, widths[0] + 2)
    for problem in backends.problems:
        click.echo(f"problem: {problem}")


def _row(row: Status, backends: Backends) -> dict[str, Any]:
    return {
        "name": row.environment.name,
        "state": row.state,
        "backends": backends.served.get(row.environment.name, {}),
        "python": row.located.python if row.located else None,
        "origin": row.located.origin if row.located else None,
        "directory": str(row.environment.directory),
        "summary": row.environment.summary,
        "problems": [str(problem) for problem in row.problems],
    }


def _show_more(row: Status, indent: int) -> None:
    if row.located:
        _echo_fitting([_short(row.located.python), f"({row.located.origin})"], indent)
    elif not row.problems:
        _echo_fitting([row.prospect], indent)
    _show_problems(row.problems[:LISTED], indent)
    if more := row.problems[LISTED:]:
        _echo_fitting([f"- and {len(more)} more: {invoked_as()} env check {row.environment.name}"], indent)


@command.command("create", help="Make an environment from its lock, if it is not there and whole.")
@NAME
def create_environment(name: str) -> None:
    click.echo(f"{name} is ready: {create(name, thorough=True)}")


@command.command("python", help="Print the interpreter that serves an environment, which is made if there is none.")
@NAME
def print_python(name: str) -> None:
    click.echo(provide(name))


@command.command(
    "check", help="Compare what an environment holds with what it needs. Without a name: those that are there."
)
@click.argument("name", type=click.Choice(list(ENVIRONMENTS)), required=False)
@click.option("--devices", is_flag=True, help="Also start the engine and ask which devices it sees (takes seconds).")
@JSON
def check(name: str | None, devices: bool, as_json: bool) -> int:
    """Exit code 1 when something is missing or does not match."""
    statuses = [Status.of(each) for each in ([name] if name else ENVIRONMENTS)]
    if not name:
        statuses = [status for status in statuses if status.state not in ("not made", "being made")]
    backends = Backends.known()
    reports = [_inspect(status, backends, devices) for status in statuses]
    if as_json:
        _print_json(reports)
    else:
        for report in reports:
            _show(report, backends, whole=name is not None)
    return 0 if all(report["ok"] for report in reports) else 1


def _inspect(status: Status, backends: Backends, devices: bool) -> dict[str, Any]:
    """One environment: every direct requirement with the version found and, when made by us, locked."""
    environment, problems = status.environment, status.problems
    report = _row(status, backends) | {"ok": False, "python": None, "packages": [], "plugins": {}, "locked": 0}
    made = environment.state in ("ready", "broken")
    ours = made and (status.located is None or Path(status.located.python).is_relative_to(environment.directory))
    interpreter = integrity.interpreter(environment.directory) if ours else None
    if status.located:
        interpreter = probe(status.located.python)
    if interpreter is None:
        report["problems"] = [str(problem) for problem in problems] or [
            f"{status.state}; run: {invoked_as()} env create {environment.name}"
        ]
        return report
    locked = environment.lock.pins
    report["python"] = {
        "executable": interpreter.executable,
        "version": ".".join(map(str, interpreter.version)),
        "origin": status.located.origin if status.located else "made from its lock",
    }
    report["locked"] = len(locked) if ours else 0
    report["packages"] = list(_packages(environment.name, interpreter, locked))
    report["plugins"] = {name: each.version for name, each in interpreter.packages.items() if is_jax_plugin(name)}
    if status.located:
        problems += environment.shortcomings(interpreter)
    if ours and not problems and (damaged := environment.faults(thorough=True)):
        again = Problem(str(environment.directory), "files are damaged", _anew(environment))
        problems = [again, *damaged]
    report["problems"] = [str(problem) for problem in problems]
    if devices and not problems:
        _ask_for_devices(report)
    report["ok"] = not report["problems"]
    return report


def _anew(environment: Environment) -> str:
    return f"make it anew: {invoked_as()} env create {environment.name}"


def _packages(name: str, interpreter: Interpreter, locked: dict[str, str]) -> Iterator[dict[str, Any]]:
    for need in read_requirements(name, interpreter.version):
        found = interpreter.installed(need.name)
        yield {
            "name": need.name,
            "wanted": f"{need.operator}{need.version}",
            "locked": locked.get(need.name),
            "found": found.version if found else None,
        }


def _ask_for_devices(report: dict[str, Any]) -> None:
    """Have the environment's engine say which devices it sees, in a process of its own."""
    name, python = report["name"], report["python"]["executable"]
    engines = {"torch": TORCH_DEVICES, "jax": JAX_DEVICES}
    asked = next((code for engine, code in engines.items() if any(p["name"] == engine for p in report["packages"])), "")
    if not asked:
        return
    variables = variables_for(python)
    if name.startswith("jax-"):
        variables["JAX_PLATFORMS"] = f"{name.removeprefix('jax-')},cpu"  # or it would be content with the CPU
    done = subprocess.run([python, "-P", "-c", asked], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        if "Unable to initialize backend" in last:  # with a remedy that would train on the CPU
            last = f"jax finds no device for {name.removeprefix('jax-')}, or not the libraries that its plugin needs"
        report["problems"].append(f"its devices cannot be asked for: {last}")
    else:
        report["devices"] = json.loads(done.stdout.splitlines()[-1])


def _show(report: dict[str, Any], backends: Backends, whole: bool) -> None:
    """whole: every package; else those that do not fit."""
    python, verdict = report["python"], "ok" if report["ok"] else "NOT OK"
    click.echo(f"{report['name']:<11}  {_coloured(verdict)}")
    if python:
        _echo_fitting([f"Python {python['version']}", _short(python["executable"]), f"({python['origin']})"], 2)
    if served := backends.of(report["name"]):
        click.echo(f"  backends: {served}")
    if report["packages"] and whole:
        _show_packages(report["packages"])
    elif report["packages"]:
        met = sum(package["found"] is not None for package in report["packages"])
        as_locked = f"; made of {report['locked']} locked packages" if report["locked"] else ""
        click.echo(f"  {met} of {len(report['packages'])} requirements are there{as_locked}")
    if report["plugins"]:
        click.echo("  jax's plugins: " + ", ".join(f"{name} {version}" for name, version in report["plugins"].items()))
    if seen := report.get("devices"):
        names = ", ".join(seen["devices"]) or "the CPU"
        threads = f", {seen['threads']} threads" if "threads" in seen else ""
        click.echo(f"  devices: {names}{threads} ({seen['engine']} for {seen['build']})")
    _show_problems(report["problems"], 2)


def _show_packages(packages: list[dict[str, Any]]) -> None:
    cells = [("PACKAGE", "FOUND", "NEEDED", "LOCKED")]
    cells += [(p["name"], p["found"] or "missing", p["wanted"] or "any", p["locked"] or "") for p in packages]
    widths = [max(len(line[column]) for line in cells) for column in range(4)]
    for line in cells:
        click.echo("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _show_problems(problems: list[Any], indent: int) -> None:
    for problem in problems:
        text = textwrap.fill(
            str(problem),
            _width(),
            initial_indent=" " * indent + "- ",
            subsequent_indent=" " * (indent + 2),
            break_long_words=False,
            break_on_hyphens=False,
        )
        click.echo(text)


def _echo_fitting(parts: list[str], indent: int) -> None:
    """The parts on one line if the terminal is wide enough, else the last one on a line of its own."""
    line = " " * indent + "  ".join(parts)
    if len(line) > _width() and len(parts) > 1:
        line = " " * indent + "  ".join(parts[:-1]) + "\n" + " " * indent + parts[-1]
    click.echo(click.style(line, dim=True))


def _coloured(state: str) -> str:
    return click.style(state, fg=COLOURS.get(state.strip(), "red"))


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


def _short(path: str) -> str:
    """With ``~`` for the home directory."""
    home = os.path.expanduser("~")
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
