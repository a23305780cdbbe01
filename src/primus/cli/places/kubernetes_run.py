"""A planned run in the place ``kubernetes``: its manifests shown, written or submitted."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from typing import Any

import click

from primus.errors import LaunchError, UsageError
from primus.launch import kubernetes_submit as kubectl
from primus.launch.direct import Direct
from primus.launch.kubernetes import Kubernetes, check, render
from primus.launch.kubernetes_yaml import manifest
from primus.runtime.environments import import_path
from primus.runtime.job import Job
from primus.runtime.training import is_complete


def inner(place: Kubernetes, direct: Direct, run: str) -> Direct:
    """What runs in a pod of `run`, for planning. Raises UsageError for flags of ``direct`` that the place sets."""
    if direct != Direct(direct.nproc):
        raise UsageError(
            "behind kubernetes, direct takes --nproc alone",
            remedy="the nodes are kubernetes --nodes N, and their variables kubernetes --env K=V",
        )
    return Direct(direct.nproc, place.nodes, rdzv=place.rdzv(run))


def show(place: Kubernetes, job: Job, *, as_json: bool) -> int:
    """The plan, and what would be submitted."""
    from primus.plan.render import as_json as in_json
    from primus.plan.render import render as screen

    objects = _objects(place, job)
    commands = [kubectl.command()]
    if as_json:
        document = {**json.loads(in_json(job.plan, commands)), "manifests": objects}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    width = min(120, shutil.get_terminal_size((100, 24)).columns)
    click.echo(screen(job.plan, commands, width=width), nl=False)
    click.echo("\nManifests, its input (the plan in the ConfigMap is the one above)")
    config, *others = objects
    shown = {**config, "data": {**config["data"], "plan.json": "..."}}
    click.echo(manifest([shown, *others]), nl=False)
    return 0


def start(place: Kubernetes, job: Job) -> int:
    """Write the manifests where ``--output`` says, else submit them unless the run is seen to be complete."""
    objects = _objects(place, job)
    if place.output is None:
        if is_complete(job):
            return 0
        click.echo(kubectl.submit(place, objects), nl=False)
        _hints(place, job, objects)
    elif str(place.output) == "-":
        click.echo(manifest(objects), nl=False)
    else:
        try:
            place.output.write_text(manifest(objects), encoding="utf-8")
        except OSError as error:
            raise LaunchError(
                f"the manifests cannot be written: {error.strerror}",
                where=str(place.output),
                remedy="choose another --output FILE",
            ) from error
        click.echo(f"written, not submitted: {place.output}")
        click.echo(f"  submit    kubectl create -f {shlex.quote(str(place.output))}")
        _hints(place, job, objects)
    return 0


def _objects(place: Kubernetes, job: Job) -> list[dict[str, Any]]:
    check(place, job.plan)
    ours = import_path()["PYTHONPATH"].split(os.pathsep)[0]
    return render(place, job.plan, argv=job.argv, import_path=ours)


def _hints(place: Kubernetes, job: Job, objects: list[dict[str, Any]]) -> None:
    for what, words in (("pods", kubectl.look), ("output", kubectl.logs), ("remove", kubectl.delete)):
        click.echo(f"  {what:<9} {shlex.join(words(place, objects))}")
    click.echo(f"  look      {job.look('show')}")
