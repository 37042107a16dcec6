"""Metrics of others that alerts look at, with the values of their labels that our objects have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from k8s.checks.rendering import Rendering, overlay

COMPONENT: Final = "app.kubernetes.io/component"
Labels = Mapping[str, frozenset[str] | None]
"""Label → its values; None where any is one."""


def _names(rendering: Rendering, kind: str) -> frozenset[str]:
    return frozenset(each["metadata"]["name"] for each in rendering.of_kind(kind))


_PRODUCTION: Final = overlay("production")
_SET: Final[Labels] = {"statefulset": _names(_PRODUCTION, "StatefulSet")}

FOREIGN: Final[Mapping[str, Labels]] = {
    "certmanager_certificate_expiration_timestamp_seconds": {
        "name": _names(_PRODUCTION, "Certificate")
    },
    "kube_pod_status_phase": {
        "phase": frozenset({"Pending", "Running", "Succeeded", "Failed", "Unknown"})
    },
    "kube_pod_status_ready": {"condition": frozenset({"true", "false", "unknown"})},
    "kube_statefulset_replicas": _SET,
    "kube_statefulset_status_replicas_ready": _SET,
}
"""Name → labels, as kube-state-metrics 2 and cert-manager 1 have them."""


def pods_made() -> dict[str, str]:
    """Component → name of a pod as KubeRay and Deployments make them, of production."""
    (service,) = _PRODUCTION.of_kind("RayService")
    cluster, config = f"{service['metadata']['name']}-x7k2p", service["spec"]["rayClusterConfig"]
    groups = [("head", config["headGroupSpec"])]
    groups += [(f"{g['groupName']}-worker", g) for g in config["workerGroupSpecs"]]
    made = {
        group["template"]["metadata"]["labels"][COMPONENT]: f"{cluster}-{name}-n4v7s"
        for name, group in groups
    }
    for each in _PRODUCTION.of_kind("Deployment", "StatefulSet"):
        labels = each["spec"]["template"]["metadata"]["labels"]
        ending = "6d5f7c9b8d-k2lmn" if each["kind"] == "Deployment" else "0"
        made[labels[COMPONENT]] = f"{each['metadata']['name']}-{ending}"
    return made
