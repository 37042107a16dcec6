"""Pods, wherever their templates stand, and what they may do."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final

from k8s.checks.rendering import Object, Problem, Rendering, shown

WORKLOADS: Final = ("Deployment", "StatefulSet", "Job")
MAY_SPEAK_TO_THE_API: Final = frozenset({"ray-head"})
"""Components whose pods have a token for the API server: Ray's autoscaler needs one."""
LEAST_USER: Final = 10_000
"""Below it are users of the machine, whose files a pod that breaks out could read."""

VOLUMES: Final = frozenset(
    {
        *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral"),
        *("persistentVolumeClaim", "projected", "secret"),
    }
)
"""Kinds of volumes that restricted pods may have."""

_UNITS: Final[dict[str, int | Decimal]] = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9,
    "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40,
}  # fmt: skip


@dataclass(frozen=True)
class Pod:
    """A pod template, and whose it is."""

    owner: str
    """`Kind/name`, and the group of a RayService."""
    kind: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def component(self) -> str:
        """Its label `app.kubernetes.io/component`."""
        return self.labels.get("app.kubernetes.io/component", "")

    @property
    def containers(self) -> list[Mapping[str, Any]]:
        """All of them, those of the start first."""
        return [*self.spec.get("initContainers", ()), *self.spec.get("containers", ())]

    def port(self, name: str | int) -> int | None:
        """Number of a port by its name or number; None where no container has it."""
        for container in self.containers:
            for port in container.get("ports", ()):
                if name in (port.get("name"), port["containerPort"]):
                    return int(port["containerPort"])
        return None

    def as_object(self) -> Object:
        """As a Pod of its own, for checks that know pods alone."""
        name = re.sub(r"[^a-z0-9]+", "-", self.owner.lower()).strip("-")
        metadata = {"name": name, "labels": dict(self.labels)}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(self.spec)}


def pods(rendering: Rendering) -> list[Pod]:
    """Pods of every workload, the heads and workers of RayServices among them."""
    found = []
    for each in rendering.of_kind(*WORKLOADS):
        found.append(_pod(shown(each), each["kind"], each["spec"]["template"]))
    for each in rendering.of_kind("RayService"):
        for group, template in ray_templates(each):
            found.append(_pod(f"{shown(each)} {group}", "RayService", template))
    return found


def ray_templates(service: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Group and pod template, the head's first."""
    cluster = service["spec"]["rayClusterConfig"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster.get("workerGroupSpecs", ()):
        yield group["groupName"], group["template"]


def check(rendering: Rendering) -> list[Problem]:
    """Pods that are not restricted, or would get more than they need."""
    found = []
    for pod in pods(rendering):
        found += [Problem(pod.owner, what) for what in _of_pod(pod)]
        for container in pod.containers:
            where = f"{pod.owner} container {container['name']}"
            found += [Problem(where, what) for what in _of_container(container)]
            context = container.get("securityContext", {})
            found += [Problem(where, what) for what in _of_context(context)]
    for each in rendering.of_kind("RayService"):
        options = each["spec"]["rayClusterConfig"].get("autoscalerOptions", {})
        where = f"{shown(each)} autoscaler"
        found += [Problem(where, what) for what in _of_context(options.get("securityContext", {}))]
    return found


def quantity(text: str | int | float) -> Decimal:
    """A quantity of Kubernetes in its unit.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"([0-9.]+)([a-zA-Z]*)", str(text))
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text} is no quantity")
    return Decimal(match[1]) * _UNITS[match[2]]


def _pod(owner: str, kind: str, template: Mapping[str, Any]) -> Pod:
    return Pod(owner, kind, template.get("metadata", {}).get("labels", {}), template["spec"])


def _of_pod(pod: Pod) -> Iterator[str]:
    spec = pod.spec
    context = spec.get("securityContext", {})
    if context.get("runAsNonRoot") is not True or context.get("runAsUser", 0) < LEAST_USER:
        yield f"runs as no user of {LEAST_USER} or above: runAsNonRoot, runAsUser"
    if context.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "has no seccompProfile RuntimeDefault"
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield f"has {name}"
    if spec.get("enableServiceLinks") is not False:
        yield "enableServiceLinks is not false: names of Services would become variables"
    if not spec.get("serviceAccountName"):
        yield "has no service account of its own"
    if spec.get("automountServiceAccountToken") is not (pod.component in MAY_SPEAK_TO_THE_API):
        yield "automountServiceAccountToken: true is for Ray's head, false for the rest"
    for volume in spec.get("volumes", ()):
        kinds = set(volume) - {"name"}
        if not kinds <= VOLUMES:
            yield f"volume {volume['name']} is a {', '.join(sorted(kinds))}"
        if "emptyDir" in volume and "sizeLimit" not in (volume["emptyDir"] or {}):
            yield f"volume {volume['name']} has no sizeLimit"


def _of_context(context: Mapping[str, Any]) -> Iterator[str]:
    if context.get("privileged"):
        yield "is privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if context.get("readOnlyRootFilesystem") is not True:
        yield "readOnlyRootFilesystem is not true"
    capabilities = context.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "does not drop ALL capabilities"
    if context.get("runAsUser") == 0 or context.get("runAsNonRoot") is False:
        yield "runs as root"


def _of_container(container: Mapping[str, Any]) -> Iterator[str]:
    image = container["image"]
    tag = image.rpartition("/")[2].partition(":")[2]
    if not tag or tag == "latest":
        yield f"image {image} names no version"
    if container.get("imagePullPolicy") is None:
        yield "has no imagePullPolicy"
    resources = container.get("resources", {})
    requests, limits = resources.get("requests", {}), resources.get("limits", {})
    for name in ("cpu", "memory"):
        if name not in requests or name not in limits:
            yield f"has no request and limit of {name}"
    for name in sorted(set(requests) & set(limits)):
        try:
            if quantity(requests[name]) > quantity(limits[name]):
                yield f"asks for more {name} than its limit"
        except ValueError as error:
            yield f"{name}: {error}"
    for port in container.get("ports", ()):
        if "hostPort" in port:
            yield f"port {port['containerPort']} is a hostPort"
