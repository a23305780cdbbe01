"""Handing manifests to a cluster: ``kubectl``, with the user's own configuration."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from primus.errors import LaunchError
from primus.launch.kubernetes import Kubernetes
from primus.launch.kubernetes_yaml import manifest

PATIENCE = 15.0
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
    # Trainer refuses a TrainJob, also in a dry run, whose runtime is not there.
    referring = [each for each in objects if each["kind"] == "TrainJob"]
    others = [each for each in objects if each not in referring]
    submission = _Submission(place, objects)
    submission.kubectl(others, "--dry-run=server")
    submission.begun = True
    said = submission.kubectl(others)
    for each in referring:
        said += submission.kubectl([each], patience=PATIENCE)
    return said


@dataclass
class _Submission:
    """Calls kubectl, and knows what to do about what it says. begun: objects may have been made."""

    place: Kubernetes
    objects: Sequence[dict[str, Any]]
    begun: bool = False

    def kubectl(self, objects: Sequence[dict[str, Any]], *more: str, patience: float = 0.0) -> str:
        """Create `objects`; for `patience` seconds again when their runtime, made just before, is not seen yet."""
        words, until = command(*more), time.monotonic() + patience
        while True:
            done = subprocess.run(
                words, input=manifest(objects), capture_output=True, encoding="utf-8", errors="replace", check=False
            )
            if done.returncode == 0:
                return done.stdout
            said = done.stderr.strip() or f"kubectl ended with code {done.returncode}"
            if time.monotonic() > until or "TrainingRuntime" not in said or "not found" not in said:
                raise LaunchError(said, where=shlex.join(words), remedy=self.against(said))
            time.sleep(0.5)

    def against(self, said: str) -> str:
        delete_all = shlex.join(delete(self.place, self.objects))
        if self.begun:
            return f"before you try again, remove what may have been made: {delete_all}"
        remedy = next((remedy for sign, remedy in REMEDIES.items() if sign in said), "")
        return remedy.format(look=f"`{shlex.join(look(self.place, self.objects))}`", delete=delete_all)


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
