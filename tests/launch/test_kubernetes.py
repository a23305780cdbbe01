"""Rendering the place ``kubernetes``: compared with manifests kept in the repository, and checked strictly against the
schemas of Kubernetes, JobSet and Kubeflow Trainer. No cluster has seen them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import kubernetes_validate
import pytest
import yaml
from kubeflow_trainer_api import models
from pydantic import BaseModel

from primus.config.load import load
from primus.errors import PlanError
from primus.launch.kubernetes import Kubernetes, SecretRef, Toleration, Volume, check, render
from primus.launch.kubernetes_yaml import manifest
from primus.plan.plan import Plan
from primus.plan.planner import make_plan

GOLDEN = Path(__file__).parent / "golden" / "kubernetes"
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]

SHARED = Volume("shared", "/shared")
EVERYTHING: dict[str, Any] = {
    "image": "rocm/primus:v26.1",
    "user": 1000,
    "group": 1001,
    "nodes": 2,
    "kind": "jobset",
    "namespace": "team-a",
    "queue": "team-queue",
    "topology": ("required", "cloud.provider.com/topology-rack"),
    "volumes": (SHARED, Volume("/mnt/data", "/data", read_only=True), Volume("shared", "/also")),
    "env": {"NCCL_DEBUG": "INFO", "ODD": '1e3 $(HOME) it\'s\n"so": é', "HF_TOKEN": SecretRef("hub", "token")},
    "resources": {"cpu": "96", "memory": "1Ti", "rdma/hca": "8"},
    "shm_size": "64Gi",
    "groups": (44, 109),
    "service_account": "trainer",
    "node_selector": {"node.kubernetes.io/instance-type": "mi300x"},
    "tolerations": (Toleration("amd.com/gpu", None, "NoSchedule"), Toleration("pool", "training")),
    "priority_class": "high",
    "grace_period": 900,
}
PLACES = {
    "job_on_cpu": ("cpu", Kubernetes("primus:local", user=1000, group=1000, volumes=(SHARED,))),
    "jobset_with_everything": ("MI300X", Kubernetes(**EVERYTHING)),
    "trainjob": (
        "MI300X",
        Kubernetes("primus:rocm", user=1000, group=1000, nodes=4, kind="trainjob", volumes=(SHARED,), queue="q"),
    ),
}


@cache
def plan(hardware: str = "cpu", nodes: int = 1, *more: str) -> Plan:
    overrides = ("name=Llama_Run.1", *more)
    resolved = load(
        Path(__file__).parent / "kubernetes.yaml", (f"extends=[models/tiny_llama, hardware/{hardware}]", *overrides)
    )
    return make_plan(resolved, nnodes=nodes, run_directory=Path("/shared/runs/Llama_Run.1"))


def objects(name: str) -> list[dict[str, Any]]:
    hardware, place = PLACES[name]
    planned = plan(hardware, place.nodes)
    check(place, planned)
    return render(place, planned, argv=["kubernetes", "--image", "i"], import_path="/shared/primus/src")


@pytest.mark.parametrize("name", PLACES)
def test_golden(name: str) -> None:
    config, *others = objects(name)
    assert json.loads(config["data"]["argv.json"]) == ["kubernetes", "--image", "i"]
    assert Plan.from_json(config["data"].pop("plan.json")) == plan(PLACES[name][0], PLACES[name][1].nodes)
    assert manifest([config, *others]) == (GOLDEN / f"{name}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PLACES)
def test_the_schemas_take_it_strictly(name: str) -> None:
    pods = 0
    for each in yaml.safe_load_all(manifest(objects(name))):
        if each["apiVersion"] in ("v1", "batch/v1"):
            takes(each)
        else:
            strictly(getattr(models, MODELS[each["kind"]]), each, each["kind"])
        for job in jobs_in(each):
            pods += 1
            takes({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "of-the-set"}, "spec": job})
    assert pods == 1


MODELS = {
    "JobSet": "JobsetV1alpha2JobSet",
    "TrainJob": "TrainerV1alpha1TrainJob",
    "TrainingRuntime": "TrainerV1alpha1TrainingRuntime",
}


def takes(document: dict[str, Any]) -> None:
    for version in VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


def strictly(model: type[BaseModel], value: Any, where: str) -> None:
    """`value` is what `model` describes and has no field that it does not know; by themselves the models ignore one."""
    model.model_validate(measured(value))
    for key, below in value.items():
        field = next((field for name, field in model.model_fields.items() if key == (field.alias or name)), None)
        assert field is not None, f"{where} has no {key}"
        for inner in models_in(field.annotation):
            for each in below if isinstance(below, list) else [below]:
                strictly(inner, each, f"{where}.{key}")


def measured(value: Any) -> Any:
    """`value` with quantities as the models want them."""
    if isinstance(value, list):
        return [measured(below) for below in value]
    if not isinstance(value, dict):
        return value
    quantity = models.IoK8sApimachineryPkgApiResourceQuantity
    return {
        key: {name: quantity(text) for name, text in below.items()}
        if key in ("limits", "requests")
        else quantity(below)
        if key == "sizeLimit"
        else measured(below)
        for key, below in value.items()
    }


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    quantity = models.IoK8sApimachineryPkgApiResourceQuantity
    if isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation is not quantity:
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def jobs_in(value: Any) -> Iterator[dict[str, Any]]:
    """The specs of jobs, wherever they are."""
    if isinstance(value, dict):
        if "completions" in value:
            yield value
        for below in value.values():
            yield from jobs_in(below)
    elif isinstance(value, list):
        for below in value:
            yield from jobs_in(below)


@pytest.mark.parametrize("name", PLACES)
def test_a_wrong_field_would_be_found(name: str) -> None:
    for each in objects(name)[1:]:
        broken = yaml.safe_load(manifest([each]))
        broken["spec"]["restartPolicies"] = 1
        with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
            takes(broken) if each["kind"] == "Job" else strictly(getattr(models, MODELS[each["kind"]]), broken, "")


def test_the_pods_may_do_nothing_that_training_does_not_need() -> None:
    (job,) = jobs_in(objects("jobset_with_everything"))
    pod = job["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["runAsUser"] == 1000
    assert not pod["automountServiceAccountToken"]
    (container,) = pod["containers"]
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert "hostNetwork" not in pod


def test_nothing_in_the_manifests_is_a_secret() -> None:
    text = manifest(objects("jobset_with_everything"))
    assert re.search(r"- name: HF_TOKEN\n +valueFrom:\n +secretKeyRef:\n +name: hub\n +key: token", text)


def test_the_nodes_meet_at_the_name_that_the_jobset_gives_its_first_pod() -> None:
    _, jobset = objects("jobset_with_everything")
    name = jobset["metadata"]["name"]
    (container,) = next(jobs_in(jobset))["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["PRIMUS_RDZV"] == f"{name}-node-0-0.{name}:29400"
    assert jobset["spec"]["replicatedJobs"][0]["name"] == "node"


def refused(place: Kubernetes, planned: Plan) -> str:
    with pytest.raises(PlanError) as caught:
        check(place, planned)
    return str(caught.value)


def test_a_run_directory_that_is_not_on_a_volume_is_refused() -> None:
    assert "the run directory is not on a volume of the pods (nothing is mounted)" in refused(
        Kubernetes("i", 1, 1), plan()
    )
    elsewhere = Kubernetes("i", 1, 1, volumes=(Volume("shared", "/share"), Volume("more", "/shared/runs/other")))
    assert "(/share, /shared/runs/other)" in refused(elsewhere, plan())
    assert "mounted read-only" in refused(Kubernetes("i", 1, 1, volumes=(Volume("shared", "/shared", True),)), plan())
    inner = (Volume("data", "/shared", True), Volume("runs", "/shared/runs"))
    check(Kubernetes("i", 1, 1, volumes=inner), plan())


def test_data_and_tokenizer_and_start_have_to_be_on_volumes_too() -> None:
    planned = plan()
    source = {"prefix": "/data/web", "digest": "0", "share": 4096, "tokens": 1, "documents": 1, "dtype": "uint16"}
    data = {"kind": "indexed", "sources": [source], "tokenizer": "/tok", "digest": "0"}
    document = json.loads(planned.to_json())
    document["data"] = data
    document["experiment"]["model"]["init"] = "/models/llama"
    said = refused(Kubernetes("i", 1, 1, volumes=(SHARED,)), Plan.from_json(json.dumps(document)))
    for path in ("/data/web: a dataset", "/tok: the tokenizer", "/models/llama: the model that training starts from"):
        assert path in said


def test_a_variable_is_set_by_the_experiment_or_by_the_place() -> None:
    planned = plan("cpu", 1, "env.NCCL_DEBUG=WARN")
    said = refused(Kubernetes("i", 1, 1, volumes=(SHARED,), env={"NCCL_DEBUG": "INFO"}), planned)
    assert "--env NCCL_DEBUG: the experiment sets NCCL_DEBUG too, to 'WARN'" in said


def test_a_plan_that_no_configmap_holds_is_refused() -> None:
    planned = plan().model_copy(update={"origins": {f"key{number}": "x" * 1000 for number in range(1100)}})
    assert re.search(
        r"the plan takes 1,1\d\d,\d+ bytes, and a ConfigMap holds 1,048,576", refused(PLACES["job_on_cpu"][1], planned)
    )
