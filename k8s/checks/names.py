"""Names, namespaces and labels that all objects have alike."""

from __future__ import annotations

import re
from typing import Final

from k8s.checks.pods import pods
from k8s.checks.rendering import Problem, Rendering, shown

CLUSTER_WIDE: Final = frozenset({"Namespace"})
LABELS: Final = ("app.kubernetes.io/name", "app.kubernetes.io/part-of")


def check(rendering: Rendering) -> list[Problem]:
    """Objects that would be elsewhere, be taken for another, or be found by nobody."""
    found = []
    namespaces = [each["metadata"]["name"] for each in rendering.of_kind("Namespace")]
    seen = set()
    for each in rendering.objects:
        where, metadata = shown(each), each["metadata"]
        if where in seen:
            found.append(Problem(where, "is there twice"))
        seen.add(where)
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", metadata["name"]):
            found.append(Problem(where, "its name is no DNS label"))
        if each["kind"] not in CLUSTER_WIDE and metadata.get("namespace") not in namespaces:
            found.append(Problem(where, f"is in none of the namespaces {', '.join(namespaces)}"))
        for label in LABELS:
            if label not in metadata.get("labels", {}) and each["kind"] not in CLUSTER_WIDE:
                found.append(Problem(where, f"has no label {label}"))
    for each in rendering.of_kind("Namespace"):
        level = each["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
        if level != "restricted":
            found.append(Problem(shown(each), "does not enforce restricted pods"))
    versions: dict[str, set[str]] = {}
    for pod in pods(rendering):
        if not pod.component or pod.labels.get(LABELS[0]) != "lexico-offload":
            found.append(Problem(pod.owner, "its pods lack labels that policies select by"))
        for container in pod.containers:
            name, _, tag = container["image"].rpartition(":")
            versions.setdefault(name, set()).add(tag)
    for name, tags in versions.items():
        if len(tags) > 1:
            found.append(Problem(f"image {name}", f"has versions {', '.join(sorted(tags))}"))
    return found
