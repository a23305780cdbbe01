"""The flags of ``primus-cli kubernetes``: everything that is wrong with them is said at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import click

from primus.cli.places.direct import NAME
from primus.config.secrets import is_secret
from primus.config.units import seconds
from primus.errors import Problem, UsageError
from primus.launch import kubernetes_names as names
from primus.launch.kubernetes import Kubernetes, SecretRef, Toleration, Volume
from primus.launch.kubernetes_pod import JOB_DIRECTORY

WITHIN = ("/dev", "/proc", "/sys", JOB_DIRECTORY)
AT = ("/bin", "/etc", "/lib", "/lib64", "/sbin", "/usr")
"""Within and at which a volume would hide what a pod needs."""
T = TypeVar("T")
OURS = {"JOB_COMPLETION_INDEX", "PRIMUS_RDZV"}
EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")
IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]*")


@click.command(
    "kubernetes",
    help="Run COMMAND's processes in a Kubernetes cluster, one pod a node. The manifests are submitted with kubectl; "
    "COMMAND's --dry-run prints them, --output writes them to a file.",
)
@click.option("-N", "--nodes", type=click.IntRange(min=1), metavar="N", default=1, help="Number of pods. Default: 1.")
@click.option("--image", metavar="IMAGE", default="", help="Container image with Primus and the engine; needed.")
@click.option(
    "--kind",
    type=click.Choice(["job", "jobset", "trainjob"]),
    help="Kind of object: a Job (one node), a JobSet or Kubeflow's TrainJob. Default: job for one node, else jobset.",
)
@click.option("-n", "--namespace", metavar="NAME", default="", help="Default: that of kubectl's context.")
@click.option(
    "--volume",
    "volumes",
    metavar="SOURCE:PATH[:ro]",
    multiple=True,
    help="Mount the claim SOURCE, or the directory /SOURCE of the nodes, at PATH; may be repeated.",
)
@click.option(
    "--env",
    "pairs",
    metavar="K=V",
    multiple=True,
    help="Environment variable; K=secret:NAME/KEY takes it from a Secret. May be repeated.",
)
@click.option("--cpu", metavar="QUANTITY", default="", help="Cores of each pod, e.g. 64.")
@click.option("--memory", metavar="QUANTITY", default="", help="Memory of each pod, e.g. 512Gi.")
@click.option("--shm-size", metavar="QUANTITY", default="", help="Largest size of /dev/shm, which counts as memory.")
@click.option(
    "--resource",
    "resources",
    metavar="NAME=N",
    multiple=True,
    help="Another resource of each pod, e.g. a network adapter: rdma/hca=8. May be repeated.",
)
@click.option("--queue", metavar="NAME", default="", help="Kueue: the local queue.")
@click.option(
    "--topology",
    metavar="required=LABEL|preferred=LABEL",
    default="",
    help="Kueue: all pods on nodes that have one value of the topology level LABEL.",
)
@click.option("--priority-class", metavar="NAME", default="", help="Priority of the pods.")
@click.option("--node-selector", "selectors", metavar="K=V", multiple=True, help="Only nodes with this label.")
@click.option("--toleration", "tolerations", metavar="K[=V][:EFFECT]", multiple=True, help="Nodes with this taint too.")
@click.option("--service-account", metavar="NAME", default="", help="Service account of the pods.")
@click.option("--user", metavar="UID[:GID]", default="", help="Whom the processes run as. Default: you.")
@click.option(
    "--group",
    "groups",
    type=click.IntRange(min=1, max=2**31 - 1),
    metavar="GID",
    multiple=True,
    help="Another group of theirs, e.g. the one that owns /dev/kfd on the nodes. May be repeated.",
)
@click.option(
    "--grace-period", metavar="DURATION", default="10m", help="Time to save when a pod is to go. Default: 10m."
)
@click.option(
    "--output",
    type=click.Path(allow_dash=True, path_type=Path),
    metavar="FILE",
    help="Write the manifests there (-: standard output) and submit nothing.",
)
def command(**given: Any) -> Kubernetes:
    problems: list[Problem] = []
    place = _Flags(given, problems).place()
    if problems:
        raise UsageError(problems=problems)
    return place


class _Flags:
    """What was given, read flag by flag. What is wrong is added to `problems`."""

    def __init__(self, given: dict[str, Any], problems: list[Problem]) -> None:
        self.given, self.problems = given, problems

    def place(self) -> Kubernetes:
        given = self.given
        user, group = self._user()
        return Kubernetes(
            image=self._image(),
            user=user,
            group=group,
            nodes=given["nodes"],
            kind=self._kind(),
            namespace=self._name("namespace", lambda text: bool(names.LABEL.fullmatch(text)), "team-a"),
            queue=self._name("queue", lambda text: names.is_subdomain(text) and len(text) <= 63, "team-queue"),
            topology=self._topology(),
            volumes=tuple(self._volumes()),
            env=self._once("--env", self._env()),
            resources=self._once("--resource", self._resources()),
            shm_size=self._quantity("--shm-size", given["shm_size"], memory=True),
            groups=given["groups"],
            service_account=self._name("service_account", names.is_subdomain, "trainer"),
            node_selector=self._once("--node-selector", self._selectors()),
            tolerations=tuple(self._tolerations()),
            priority_class=self._name("priority_class", names.is_subdomain, "high"),
            grace_period=self._grace(),
            output=given["output"],
        )

    def _wrong(self, where: str, message: str, remedy: str) -> None:
        self.problems.append(Problem(where, message, remedy))

    def _once(self, flag: str, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
        found: dict[str, T] = {}
        for name, value in pairs:
            if name in found:
                self._wrong(f"{flag} {name}", "is given twice", "keep one of the two")
            found[name] = value
        return found

    def _image(self) -> str:
        image: str = self.given["image"]
        if not image:
            self._wrong("--image", "the pods need an image", "--image NAME:TAG, one with Primus and the engine")
        elif not IMAGE.fullmatch(image):
            self._wrong(f"--image {image}", "is not the name of an image", "e.g. --image rocm/primus:v26.1")
        return image

    def _kind(self) -> Any:
        kind, nodes = self.given["kind"], self.given["nodes"]
        if kind == "job" and nodes > 1:
            self._wrong(
                "--kind job", f"is for one node, not {nodes}: its pods could not find each other", "leave --kind out"
            )
        return kind or ("job" if nodes == 1 else "jobset")

    def _name(self, flag: str, valid: Callable[[str], bool], example: str) -> str:
        text: str = self.given[flag]
        option = f"--{flag.replace('_', '-')}"
        if text and not valid(text):
            kind = "letters a to z, digits and '-'" + ("" if flag == "namespace" else ", with dots between")
            remedy = f"{kind}, at most {253 if valid is names.is_subdomain else 63}; e.g. {option} {example}"
            self._wrong(f"{option} {text}", "is not a name that Kubernetes takes", remedy)
        return text

    def _topology(self) -> Any:
        text: str = self.given["topology"]
        if not text:
            return None
        request, _, level = text.partition("=")
        if request not in ("required", "preferred") or not names.is_key(level):
            remedy = "e.g. --topology required=cloud.provider.com/topology-rack; a level is a label of the nodes"
            self._wrong(f"--topology {text}", "is not required=LABEL or preferred=LABEL", remedy)
        if not self.given["queue"]:
            self._wrong(
                f"--topology {text}", "is a request to Kueue, which looks after queues alone", "add --queue NAME"
            )
        return request, level

    def _volumes(self) -> Iterable[Volume]:
        taken: set[str] = set()
        for text in self.given["volumes"]:
            where = f"--volume {text}"
            source, _, rest = text.partition(":")
            path, colon, mode = rest.partition(":")
            plain = PurePosixPath(path)
            if not path.startswith("/") or (colon and mode != "ro") or ".." in plain.parts or len(plain.parts) < 2:
                self._wrong(where, "is not SOURCE:PATH[:ro] with an absolute PATH", "e.g. --volume team-data:/data")
            elif not (source.startswith("/") and ".." not in source.split("/")) and not names.is_subdomain(source):
                remedy = "the name of a PersistentVolumeClaim, or an absolute directory of the nodes"
                self._wrong(where, f"'{source}' is neither a claim nor a directory", remedy)
            elif str(plain) in AT or any(plain.is_relative_to(each) for each in WITHIN):
                self._wrong(where, f"would hide what a pod needs in {plain}", "choose another PATH, e.g. /data")
            elif str(plain) in taken:
                self._wrong(where, f"another volume is mounted at {plain} too", "give each a PATH of its own")
            else:
                yield Volume(source, str(plain), bool(colon))
            taken.add(str(plain))

    def _env(self) -> Iterable[tuple[str, str | SecretRef]]:
        for pair in self.given["pairs"]:
            name, equals, value = pair.partition("=")
            if not equals or not NAME.fullmatch(name):
                self._wrong(
                    f"--env {name if is_secret(name) else pair}", "is not NAME=VALUE", "e.g. --env NCCL_DEBUG=INFO"
                )
            elif name in OURS:
                self._wrong(f"--env {name}", "is what the pods find each other by", "leave it out")
            elif value.startswith("secret:"):
                secret, _, key = value.removeprefix("secret:").partition("/")
                if not names.is_subdomain(secret) or not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", key):
                    self._wrong(f"--env {pair}", "is not NAME=secret:SECRET/KEY", f"e.g. --env {name}=secret:hub/token")
                yield name, SecretRef(secret, key)
            elif is_secret(name, value):
                remedy = (
                    f"kubectl create secret generic hub --from-literal=token=..., and --env {name}=secret:hub/token"
                )
                self._wrong(f"--env {name}", "looks like a secret, which everybody could read in the manifests", remedy)
            elif any(0xD800 <= ord(letter) < 0xE000 for letter in value):
                self._wrong(f"--env {name}", "its value is not UTF-8", "a manifest holds text")
            else:
                yield name, value

    def _quantity(self, where: str, text: str, **kind: bool) -> str:
        if text and (fault := names.quantity_fault(text, **kind)):
            cause, _, remedy = fault.partition("; ")
            self._wrong(f"{where} {text}", cause, remedy)
        return text

    def _resources(self) -> Iterable[tuple[str, str]]:
        for name in ("cpu", "memory"):
            if text := self.given[name]:
                yield name, self._quantity(f"--{name}", text, memory=name == "memory")
        for pair in self.given["resources"]:
            name, _, count = pair.partition("=")
            if "/" not in name or not names.is_key(name) or names.quantity_fault(count, whole=True):
                self._wrong(f"--resource {pair}", "is not NAME=N of a device plugin", "e.g. --resource rdma/hca=8")
            elif name in ("amd.com/gpu", "nvidia.com/gpu"):
                remedy = "they come from the experiment's hardware: as many as processes, direct --nproc N"
                self._wrong(f"--resource {pair}", "devices are not asked for here", remedy)
            yield name, count

    def _selectors(self) -> Iterable[tuple[str, str]]:
        for pair in self.given["selectors"]:
            key, equals, value = pair.partition("=")
            if not equals or not names.is_key(key) or not names.is_label_value(value):
                remedy = "e.g. --node-selector node.kubernetes.io/instance-type=mi300x"
                self._wrong(f"--node-selector {pair}", "is not a label KEY=VALUE", remedy)
            yield key, value

    def _tolerations(self) -> Iterable[Toleration]:
        for text in self.given["tolerations"]:
            taint, colon, effect = text.partition(":")
            key, equals, value = taint.partition("=")
            if (colon and effect not in EFFECTS) or not names.is_key(key) or not names.is_label_value(value):
                remedy = f"e.g. --toleration amd.com/gpu:NoSchedule; effects are {', '.join(EFFECTS)}"
                self._wrong(f"--toleration {text}", "is not KEY[=VALUE][:EFFECT]", remedy)
            yield Toleration(key, value if equals else None, effect)

    def _user(self) -> tuple[int, int]:
        text: str = self.given["user"]
        if not text:
            if os.getuid() == 0:
                remedy = "--user UID[:GID] of somebody who may write the volumes"
                self._wrong("--user", "you are root, and pods do not run as root", remedy)
            return os.getuid(), os.getgid()
        match = re.fullmatch(r"([1-9][0-9]{0,9})(?::([1-9][0-9]{0,9}))?", text)
        user, group = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 0 < max(user, group) < 2**31:
            self._wrong(f"--user {text}", "is not UID[:GID], numbers above 0", "e.g. --user 1000:1000")
        return user, group

    def _grace(self) -> int:
        text: str = self.given["grace_period"]
        try:
            return max(1, round(seconds(text)))
        except ValueError as error:
            self._wrong(f"--grace-period {text}", str(error), "")
            return 0
