"""What KubeRay's operator refuses, which no definition says and nobody but its log would tell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from k8s.checks.rendering import Object, Problem, Rendering, shown

LONGEST_NAME: Final = 47
"""Of a RayService: names of its clusters and pods are longer."""
GATED: Final = ("historyServerOptions", "networkPolicy", "tlsOptions")
"""Fields of a RayCluster that need a feature gate, which are off by default in KubeRay 1.7."""
ITS_OWN: Final = frozenset(
    {
        *("RAY_CLUSTER_NAME", "RAY_CLUSTER_NAMESPACE", "KUBERAY_GEN_RAY_START_CMD"),
        *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_enable_autoscaler_v2"),
        *("RAY_REDIS_ADDRESS", "RAY_external_storage_namespace", "REDIS_PASSWORD"),
    }
)
"""Variables that the operator sets, from fields of the RayService."""


def check(rendering: Rendering) -> list[Problem]:
    """RayServices of KubeRay 1.7 that would stay without pods."""
    found = []
    for each in rendering.of_kind("RayService"):
        found += [Problem(shown(each), what) for what in _of_service(each)]
    return found


def _of_service(service: Object) -> Iterator[str]:
    spec = service["spec"]
    cluster = spec["rayClusterConfig"]
    if len(service["metadata"]["name"]) > LONGEST_NAME:
        yield f"its name has over {LONGEST_NAME} characters"
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in ("NewCluster", "None"):
        yield "upgradeStrategy: other types need the Gateway API, and move Serve's proxies alone"
    for name in GATED:
        if name in cluster:
            yield f"{name} needs a feature gate of the operator"
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "authOptions.enableK8sTokenAuth is not for RayServices"
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend", "redis") != "redis":
        yield "gcsFaultToleranceOptions.backend needs a feature gate of the operator"
    scaled = cluster.get("enableInTreeAutoscaling", False)
    for name, group in _groups(cluster):
        for what in _of_group(group, scaled):
            yield f"group {name}: {what}"


def _groups(cluster: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield "head", cluster["headGroupSpec"]
    for group in cluster.get("workerGroupSpecs", ()):
        yield group["groupName"], group


def _of_group(group: Mapping[str, Any], scaled: bool) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    for name in ("labels", "redis-password", "redis-username"):
        if name in parameters:
            yield f"rayStartParams may not have {name}"
    if "resources" in group and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
        yield "resources and rayStartParams both say what Ray has"
    spec = group["template"]["spec"]
    if scaled and spec.get("restartPolicy", "Never") != "Never":
        yield "restartPolicy must be Never, or unset, for the autoscaler"
    for variable in spec["containers"][0].get("env", ()):
        if variable["name"] in ITS_OWN:
            yield f"variable {variable['name']} is the operator's"
