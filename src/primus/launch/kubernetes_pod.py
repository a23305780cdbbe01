"""A pod of the place ``kubernetes``: one node of the run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from primus.plan.plan import Plan

if TYPE_CHECKING:
    from primus.launch.kubernetes import Kubernetes

DEVICES = {"rocm": "amd.com/gpu", "cuda": "nvidia.com/gpu"}
"""Kind of device -> the resource that its device plugin offers."""
JOB_DIRECTORY = "/etc/primus/job"
"""Where the plan is mounted."""


def ready_labels(name: str) -> dict[str, str]:
    """By which everything of a run is found, e.g. ``kubectl get all -l app.kubernetes.io/instance=NAME``."""
    return {"app.kubernetes.io/name": "primus", "app.kubernetes.io/instance": name}


def pod_template(place: Kubernetes, plan: Plan, name: str, *, import_path: str) -> dict[str, Any]:
    """`name`: of the ConfigMap and in the labels."""
    metadata: dict[str, Any] = {"labels": ready_labels(name)}
    if place.topology:
        request, level = place.topology
        metadata["annotations"] = {f"kueue.x-k8s.io/podset-{request}-topology": level}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": place.grace_period,
        # The launcher is then not process 1, which would be deaf to a SIGTERM before it listens and would have to
        # collect the orphans of killed ranks.
        "shareProcessNamespace": True,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _pod_security(place),
    }
    if place.service_account:
        spec["serviceAccountName"] = place.service_account
    if place.priority_class:
        spec["priorityClassName"] = place.priority_class
    if place.node_selector:
        spec["nodeSelector"] = dict(place.node_selector)
    if place.tolerations:
        spec["tolerations"] = [
            {
                "key": toleration.key,
                **({"operator": "Exists"} if toleration.value is None else {"value": toleration.value}),
                **({"effect": toleration.effect} if toleration.effect else {}),
            }
            for toleration in place.tolerations
        ]
    spec["containers"] = [_container(place, plan, import_path)]
    spec["volumes"] = list(_volumes(place, name))
    return {"metadata": metadata, "spec": spec}


def _pod_security(place: Kubernetes) -> dict[str, Any]:
    # No fsGroup: it would hand a whole shared claim over to one group, file by file.
    context: dict[str, Any] = {"runAsNonRoot": True, "runAsUser": place.user, "runAsGroup": place.group}
    if place.groups:
        context["supplementalGroups"] = list(place.groups)
    return {**context, "seccompProfile": {"type": "RuntimeDefault"}}


def _container(place: Kubernetes, plan: Plan, import_path: str) -> dict[str, Any]:
    container = {
        "name": "node",
        "image": place.image,
        "command": ["python3", "-P", "-m", "primus.runtime.pod", JOB_DIRECTORY],
        "env": list(_variables(place, plan, import_path)),
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": list(_mounts(place)),
    }
    resources = dict(place.resources)
    if device := DEVICES.get(plan.experiment.hardware.device):
        resources[device] = str(plan.topology.nproc_per_node)
    if resources:
        container["resources"] = {"requests": resources, "limits": resources}
    return container


def _variables(place: Kubernetes, plan: Plan, import_path: str) -> Iterator[dict[str, Any]]:
    values: dict[str, Any] = {"HOME": "/tmp"}  # of a user whom the image does not know
    if any(volume.holds(import_path) for volume in place.volumes):
        values["PYTHONPATH"] = import_path
    if rdzv := place.rdzv(plan.experiment.name):
        values["PRIMUS_RDZV"] = rdzv
    for name, value in {**values, **place.env}.items():
        if isinstance(value, str):
            yield {"name": name, "value": value.replace("$", "$$")}  # $(NAME) would be another variable's value
        else:
            yield {"name": name, "valueFrom": {"secretKeyRef": {"name": value.name, "key": value.key}}}


def _volumes(place: Kubernetes, name: str) -> Iterator[dict[str, Any]]:
    yield {"name": "job", "configMap": {"name": name}}
    memory = {"medium": "Memory", **({"sizeLimit": place.shm_size} if place.shm_size else {})}
    yield {"name": "shm", "emptyDir": memory}
    for number, source in enumerate(_sources(place)):
        if source.startswith("/"):
            yield {"name": f"volume-{number}", "hostPath": {"path": source, "type": "Directory"}}
        else:
            yield {"name": f"volume-{number}", "persistentVolumeClaim": {"claimName": source}}


def _mounts(place: Kubernetes) -> Iterator[dict[str, Any]]:
    yield {"name": "job", "mountPath": JOB_DIRECTORY, "readOnly": True}
    yield {"name": "shm", "mountPath": "/dev/shm"}
    sources = _sources(place)
    for volume in place.volumes:
        read_only = {"readOnly": True} if volume.read_only else {}
        yield {"name": f"volume-{sources.index(volume.source)}", "mountPath": volume.path, **read_only}


def _sources(place: Kubernetes) -> list[str]:
    """Of the volumes, each once: a claim may be mounted at several places."""
    return list(dict.fromkeys(volume.source for volume in place.volumes))
