"""``primus-cli env``: the Python environments."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any

import click

from primus.errors import EnvironmentFault, Problem
from primus.runtime.environments import ENVIRONMENTS, Environment, Located, create, get, locate, provide
from primus.runtime.pins import probe, read_requirements

NAME = click.argument("name", type=click.Choice(list(ENVIRONMENTS)))
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

DEVICES = """
import json, torch
kind = "rocm" if torch.version.hip else "cuda" if torch.version.cuda else "cpu"
names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"build": kind, "devices": names, "threads": torch.get_num_threads()}))
"""


@click.group(help="List, make and check the Python environments.")
def command() -> None:
    pass


@dataclass(frozen=True)
class Status:
    """Where an environment stands: what serves it, or why nothing does."""

    environment: Environment
    located: Located | None
    refused: tuple[Problem, ...] = ()

    @property
    def state(self) -> str:
        if self.refused:
            return "refused"
        return "ready" if self.located else "not made"

    @property
    def interpreter(self) -> str:
        return self.located.python if self.located else "made when a command first needs it"

    @classmethod
    def of(cls, name: str) -> Status:
        try:
            return cls(get(name), locate(name))
        except EnvironmentFault as fault:
            return cls(get(name), None, fault.problems)


@command.command("list", help="Which environments there are and what serves each.")
@JSON
def list_environments(as_json: bool) -> None:
    rows = [Status.of(name) for name in ENVIRONMENTS]
    if as_json:
        _print_json(
            [
                {
                    "name": row.environment.name,
                    "state": row.state,
                    "python": row.located.python if row.located else None,
                    "origin": row.located.origin if row.located else None,
                    "directory": str(row.environment.directory),
                    "summary": row.environment.summary,
                }
                for row in rows
            ]
        )
        return
    for row in rows:
        origin = f"  ({row.located.origin})" if row.located else ""
        click.echo(
            f"{row.environment.name:<9} {row.state:<9} {row.environment.summary}\n{'':20}{row.interpreter}{origin}"
        )


@command.command("create", help="Make an environment from its lock, if it is not there yet.")
@NAME
def create_environment(name: str) -> None:
    environment = get(name)
    if environment.made:
        click.echo(f"{name} is ready: {environment.directory}")
        return
    create(name)


@command.command("python", help="Print the interpreter that serves an environment, which is made if there is none.")
@NAME
def print_python(name: str) -> None:
    click.echo(provide(name))


@command.command(
    "check", help="Compare what an environment holds with what it needs. Without a name: those that are there."
)
@click.argument("name", type=click.Choice(list(ENVIRONMENTS)), required=False)
@click.option("--devices", is_flag=True, help="Also start torch and ask which devices it sees (takes seconds).")
@JSON
def check(name: str | None, devices: bool, as_json: bool) -> int:
    """Exit code 1 when something is missing or does not match."""
    statuses = [Status.of(each) for each in ([name] if name else ENVIRONMENTS)]
    if not name:
        statuses = [status for status in statuses if status.state != "not made"]
    reports = [_inspect(status, devices) for status in statuses]
    if as_json:
        _print_json(reports)
    else:
        for report in reports:
            _show(report)
    return 0 if all(report["ok"] for report in reports) else 1


def _inspect(status: Status, devices: bool) -> dict[str, Any]:
    """One environment: every direct requirement with the version found and, when made by us, locked."""
    name = status.environment.name
    report: dict[str, Any] = {
        "name": name,
        "state": status.state,
        "ok": False,
        "python": None,
        "packages": [],
        "problems": [],
    }
    if status.located is None:
        report["problems"] = [str(problem) for problem in status.refused] or [
            f"not made; run: primus-cli env create {name}"
        ]
        return report
    interpreter = probe(status.located.python)
    locked = status.environment.lock.pins
    report["python"] = {
        "executable": status.located.python,
        "version": ".".join(map(str, interpreter.version)),
        "origin": status.located.origin,
    }
    for need in read_requirements(name, interpreter.version):
        found = interpreter.installed(need.name)
        report["packages"].append(
            {
                "name": need.name,
                "wanted": f"{need.operator}{need.version}",
                "locked": locked.get(need.name),
                "found": found.version if found else None,
            }
        )
    report["problems"] = [str(problem) for problem in status.environment.shortcomings(interpreter)]
    if devices and any(package["name"] == "torch" for package in report["packages"]):
        asked = subprocess.run(
            [status.located.python, "-P", "-c", DEVICES], capture_output=True, text=True, check=False
        )
        if asked.returncode:
            report["problems"].append(f"torch cannot be imported: {asked.stderr.strip().splitlines()[-1]}")
        else:
            report["devices"] = json.loads(asked.stdout)
    report["ok"] = not report["problems"]
    return report


def _show(report: dict[str, Any]) -> None:
    python = report["python"]
    click.echo(f"{report['name']}: {'ok' if report['ok'] else 'NOT OK'}")
    if python:
        click.echo(f"  Python {python['version']}  {python['executable']}  ({python['origin']})")
    for package in report["packages"]:
        locked = f"  locked {package['locked']}" if package["locked"] else ""
        found, wanted = package["found"] or "missing", package["wanted"] or "any"
        click.echo(f"  {package['name']:<18} {found:<14} wanted {wanted:<10}{locked}")
    if seen := report.get("devices"):
        names = ", ".join(seen["devices"]) or "the CPU"
        click.echo(f"  torch build {seen['build']}; devices: {names}; {seen['threads']} threads")
    for problem in report["problems"]:
        click.echo(f"  problem: {problem}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))
