"""The place ``kubernetes``: a Job for one node, a JobSet or a TrainJob for several.

``render`` is pure: the same arguments give the same objects. The plan, made once outside, is carried in a ConfigMap;
each pod runs ``primus.runtime.pod`` on it. Names of objects, fields and labels are those of Kubernetes 1.25 and newer,
JobSet ``v1alpha2``, Kubeflow Trainer ``v1alpha1`` and Kueue.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from primus.errors import PlanError, Problem
from primus.launch.direct import DEFAULT_PORT
from primus.launch.kubernetes_names import object_name
from primus.launch.kubernetes_pod import pod_template, ready_labels
from primus.plan.plan import Plan

Kind = Literal["job", "jobset", "trainjob"]
LARGEST_PLAN = 1 << 20
"""Bytes that a ConfigMap may hold."""
STOPPED = 143
"""Exit code of a node launcher that SIGTERM stopped, after it saved: 128 + 15."""
MISCONFIGURED = 2


@dataclass(frozen=True)
class Volume:
    """What is mounted at `path` in every pod: the claim `source` of the namespace or, if it begins with a slash, a
    directory of the nodes."""

    source: str
    path: str
    read_only: bool = False

    def holds(self, path: str) -> bool:
        return PurePosixPath(path).is_relative_to(self.path)


@dataclass(frozen=True)
class SecretRef:
    """The value of `key` in the Secret `name`: read by the cluster, seen by nobody here."""

    name: str
    key: str


@dataclass(frozen=True)
class Toleration:
    """effect: empty for all. value: None tolerates any."""

    key: str
    value: str | None = None
    effect: str = ""


@dataclass(frozen=True)
class Kubernetes:
    """The flags of ``kubernetes``, checked.

    namespace: empty for that of kubectl's context. topology: ``required`` or ``preferred``, and the node label of the
    level. resources: of each pod, beside its devices, e.g. ``{"cpu": "16"}``. shm_size: empty for as much as the memory
    allows. user, group: ids of the processes, which own what the run writes. groups: more of them, e.g. the nodes'
    group ``render``. grace_period: seconds from SIGTERM to SIGKILL. output: a file for the manifests, which are then
    not submitted; ``-`` is standard output.
    """

    image: str
    user: int
    group: int
    nodes: int = 1
    kind: Kind = "job"
    namespace: str = ""
    queue: str = ""
    topology: tuple[Literal["required", "preferred"], str] | None = None
    volumes: tuple[Volume, ...] = ()
    env: Mapping[str, str | SecretRef] = field(default_factory=dict)
    resources: Mapping[str, str] = field(default_factory=dict)
    shm_size: str = ""
    groups: tuple[int, ...] = ()
    service_account: str = ""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    priority_class: str = ""
    grace_period: int = 600
    output: Path | None = None

    def rdzv(self, run: str) -> str:
        """Where the nodes of `run` meet: pod 0 by the name that the headless service of its JobSet gives it. Empty for
        one node, which has none to meet."""
        name = object_name(run)
        return f"{name}-node-0-0.{name}:{DEFAULT_PORT}" if self.nodes > 1 else ""


def check(place: Kubernetes, plan: Plan) -> None:
    """Raises PlanError with everything that keeps `plan` from running in `place`."""
    if problems := list(_problems(place, plan)):
        raise PlanError(problems=problems)


def _problems(place: Kubernetes, plan: Plan) -> Iterator[Problem]:
    mounted = ", ".join(volume.path for volume in place.volumes) or "nothing is mounted"
    written = [volume for volume in place.volumes if volume.holds(plan.run_directory)]
    if not written:
        yield Problem(
            plan.run_directory,
            f"the run directory is not on a volume of the pods ({mounted}): checkpoints would be lost with them",
            "mount a claim that all nodes can write, --volume CLAIM:PATH, and give --runs-dir DIR (or PRIMUS_RUNS) "
            "under its PATH",
        )
    elif _innermost(written).read_only:
        yield Problem(plan.run_directory, "the run directory is on a volume that is mounted read-only", "drop its :ro")
    for what, path in _read_by_ranks(plan):
        if not any(volume.holds(path) for volume in place.volumes):
            yield Problem(
                path,
                f"{what} is not on a volume of the pods ({mounted})",
                "keep it on a claim that is mounted here and in the pods at the same path, --volume CLAIM:PATH; what "
                "Primus itself made or fetched is in PRIMUS_HOME",
            )
    for name in sorted(place.env.keys() & plan.env.keys()):
        yield Problem(
            f"--env {name}", f"the experiment sets {name} too, to {plan.env[name]!r}", "set it in one of the two"
        )
    if (size := len(_plan_text(plan).encode())) > LARGEST_PLAN:
        yield Problem(
            "",
            f"the plan takes {size:,} bytes, and a ConfigMap holds {LARGEST_PLAN:,}",
            "prepare the datasets as fewer, larger ones: the plan lists each",
        )


def _innermost(volumes: list[Volume]) -> Volume:
    return max(volumes, key=lambda volume: len(PurePosixPath(volume.path).parts))


def _read_by_ranks(plan: Plan) -> Iterator[tuple[str, str]]:
    """What a rank opens besides the run directory."""
    for source in (*plan.data.sources, *plan.data.validation_sources):
        yield "a dataset", source.prefix
    if plan.data.tokenizer:
        yield "the tokenizer", plan.data.tokenizer
    init = plan.experiment.model.init
    if init not in ("random", "native"):
        yield "the model that training starts from", init


def render(place: Kubernetes, plan: Plan, *, argv: Sequence[str], import_path: str) -> list[dict[str, Any]]:
    """The objects to create, in order. argv: the words after ``primus-cli``. import_path: the directory that holds the
    package ``primus`` here; it is used in the pods when it is on a volume of theirs, and the image has to bring Primus
    when it is not."""
    name = object_name(plan.experiment.name)
    labels = ready_labels(name)
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(place, name, labels),
        "immutable": True,
        "data": {"argv.json": json.dumps(argv), "plan.json": _plan_text(plan)},
    }
    pod = pod_template(place, plan, name, import_path=import_path)
    restarts = plan.experiment.resilience.max_restarts
    queue = {"kueue.x-k8s.io/queue-name": place.queue} if place.queue else {}
    metadata = _metadata(place, name, {**labels, **queue})
    if place.kind == "job":
        return [config, {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": _job(pod, restarts)}]
    jobset = _jobset(pod, place.nodes, restarts, labels)
    if place.kind == "jobset":
        return [
            config,
            {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": jobset},
        ]
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}  # how Trainer finds the job that it scales
    jobset["replicatedJobs"][0]["template"]["metadata"]["labels"] |= step
    runtime = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": _metadata(place, name, labels),
        "spec": {"mlPolicy": {"numNodes": place.nodes}, "template": {"spec": jobset}},
    }
    reference = {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name}
    train_job = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {"runtimeRef": reference, "trainer": {"numNodes": place.nodes}},
    }
    return [config, runtime, train_job]


def _metadata(place: Kubernetes, name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    namespace = {"namespace": place.namespace} if place.namespace else {}
    return {"name": name, **namespace, "labels": dict(labels)}


def _plan_text(plan: Plan) -> str:
    """The plan in ASCII, so that it stands in a manifest line by line."""
    return json.dumps(json.loads(plan.to_json()), indent=1) + "\n"


def _job(pod: dict[str, Any], restarts: int) -> dict[str, Any]:
    """One pod at a time, replaced when it was disrupted or stopped, and up to `restarts` times when it failed."""
    return {
        "completionMode": "Indexed",
        "completions": 1,
        "parallelism": 1,
        "backoffLimit": restarts,
        "podFailurePolicy": {"rules": [*_disruptions("Ignore"), _exit_code(MISCONFIGURED, "FailJob")]},
        "template": pod,
    }


def _jobset(pod: dict[str, Any], nodes: int, restarts: int, labels: Mapping[str, str]) -> dict[str, Any]:
    """All pods together: when one fails, all are started anew, on whatever nodes are free. Only those that fail by
    themselves count as restarts, not those that were disrupted or stopped."""
    job = {
        "completionMode": "Indexed",
        "completions": nodes,
        "parallelism": nodes,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": _disruptions("FailJob")},
        "template": pod,
    }
    disrupted = {
        "name": "disrupted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": restarts, "rules": [disrupted]},
        "replicatedJobs": [
            {"name": "node", "replicas": 1, "template": {"metadata": {"labels": dict(labels)}, "spec": job}}
        ],
    }


def _disruptions(action: str) -> list[dict[str, Any]]:
    """What is no failure of the pod's own: preempted, evicted, drained; or, on another node of these, stopped with it
    and saved."""
    condition = {"type": "DisruptionTarget", "status": "True"}
    return [{"action": action, "onPodConditions": [condition]}, _exit_code(STOPPED, action)]


def _exit_code(code: int, action: str) -> dict[str, Any]:
    codes = {"containerName": "node", "operator": "In", "values": [code]}
    return {"action": action, "onExitCodes": codes, "onPodConditions": []}  # the schemas before 1.29 want both
