"""Handing manifests to a cluster: ``kubectl``, with the user's own configuration."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from primus.errors import LaunchError
from primus.launch.kubernetes import Kubernetes
from primus.launch.kubernetes_yaml import manifest

NOBODY = "is there a cluster? choose one with `kubectl config use-context NAME` or KUBECONFIG"
REMEDIES = {  # by what kubectl says
    "refused": NOBODY,
    "no such host": NOBODY,
    "i/o timeout": NOBODY,
    "no matches for kind": "the cluster does not know this kind: have JobSet (or Kubeflow Trainer) installed in it, or "
    "choose another with --kind",
    "AlreadyExists": "this run is in the cluster already: {look}. Once it has ended, remove it with `{delete}` and "
    "submit again: the run continues from its newest checkpoint",
    "Forbidden": "ask for the right to create these objects, or choose another --namespace",
    "Unauthorized": "log in to the cluster again",
}


def command(*more: str) -> list[str]:
    return ["kubectl", "create", *more, "-f", "-"]


def submit(place: Kubernetes, objects: Sequence[dict[str, Any]]) -> str:
    """Create `objects`, all or none as far as the cluster can tell beforehand; returns what kubectl says.

    Raises LaunchError with kubectl's own words.
    """
    if shutil.which("kubectl") is None:
        raise LaunchError("there is no kubectl on PATH", remedy="install it, or write the manifests with --output FILE")
    text = manifest(objects)
    _kubectl(place, objects, text, "--dry-run=server")
    return _kubectl(place, objects, text)


def _kubectl(place: Kubernetes, objects: Sequence[dict[str, Any]], text: str, *more: str) -> str:
    done = subprocess.run(command(*more), input=text, capture_output=True, encoding="utf-8", check=False)
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip() or f"kubectl ended with code {done.returncode}"
    remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in said), "")
    hints = {"look": f"`{shlex.join(look(place, objects))}`", "delete": shlex.join(delete(place, objects))}
    raise LaunchError(said, where=shlex.join(command(*more)), remedy=remedy.format(**hints))


def look(place: Kubernetes, objects: Sequence[dict[str, Any]]) -> list[str]:
    return ["kubectl", "get", "pods", *_of_run(place, objects)]


def logs(place: Kubernetes, objects: Sequence[dict[str, Any]]) -> list[str]:
    return ["kubectl", "logs", "-f", *_of_run(place, objects, ",batch.kubernetes.io/job-completion-index=0")]


def delete(place: Kubernetes, objects: Sequence[dict[str, Any]]) -> list[str]:
    kinds = ",".join(dict.fromkeys(each["kind"].lower() for each in reversed(objects)))
    return ["kubectl", "delete", kinds, *_of_run(place, objects)]


def _of_run(place: Kubernetes, objects: Sequence[dict[str, Any]], more: str = "") -> list[str]:
    name = objects[0]["metadata"]["name"]
    namespace = ["-n", place.namespace] if place.namespace else []
    return [*namespace, "-l", f"app.kubernetes.io/instance={name}{more}"]
