"""Objects as an older server knows them, and what of each it is then not asked about.

Every change says the same in older words, or it drops a field and says so: a field that is left
out of the question is in `Converted.unasked`, and so in the report.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from k8s.checks.rendering import Object

TEMPLATES: Final = {
    "Deployment": ("spec", "template", "spec"),
    "StatefulSet": ("spec", "template", "spec"),
    "Job": ("spec", "template", "spec"),
    "Pod": ("spec",),
}
"""Where an object has its pod."""


@dataclass(frozen=True)
class Converted:
    """An object to be asked about in place of another."""

    item: Object
    said: frozenset[str] = frozenset()
    """What is said in older words."""
    unasked: frozenset[str] = frozenset()
    """What the server is not asked about: fields that it does not know."""


@dataclass(frozen=True)
class Change:
    """One thing that a server learned with a version."""

    since: int
    """The minor version of Kubernetes 1 that knows it without help."""
    what: str
    apply: Callable[[Object], bool]
    """Changes an object, and tells whether there was something to change."""
    drops: bool = False
    """Whether the server is not asked about it, in whole or in part."""


def converted(item: Object, minor: int) -> Converted:
    """A copy of an object for a server of Kubernetes 1.`minor`."""
    made = copy.deepcopy(item)
    said: set[str] = set()
    unasked: set[str] = set()
    for change in CHANGES:
        if minor < change.since and change.apply(made):
            (unasked if change.drops else said).add(change.what)
    return Converted(made, frozenset(said), frozenset(unasked))


def _containers(item: Object) -> Iterator[dict[str, Any]]:
    where: Any = item
    for part in TEMPLATES.get(item["kind"], ("",)):
        where = where.get(part, {}) if isinstance(where, dict) else {}
    for name in ("initContainers", "containers"):
        found = where.get(name) if isinstance(where, dict) else None
        yield from (each for each in found or () if isinstance(each, dict))


def _version(kind: str, new: str, old: str) -> Callable[[Object], bool]:
    def apply(item: Object) -> bool:
        if (item["kind"], item["apiVersion"]) != (kind, new):
            return False
        item["apiVersion"] = old
        return True

    return apply


def _protocols(item: Object) -> bool:
    lists = [each.get("ports") for each in _containers(item)]
    if item["kind"] == "Service":
        lists.append(item.get("spec", {}).get("ports"))
    bare = [
        port
        for ports in lists
        for port in ports or ()
        if isinstance(port, dict) and "protocol" not in port
    ]
    for port in bare:
        port["protocol"] = "TCP"
    return bool(bare)


def _probes(item: Object) -> bool:
    found = [
        container[name]
        for container in _containers(item)
        for name in ("livenessProbe", "readinessProbe", "startupProbe")
        if "grpc" in (container.get(name) or {})
    ]
    for probe in found:
        probe["tcpSocket"] = {"port": probe.pop("grpc").get("port")}
    return bool(found)


def _sleeps(item: Object) -> bool:
    hooks = [
        (container.get("lifecycle") or {}).get(name) or {}
        for container in _containers(item)
        for name in ("preStop", "postStart")
    ]
    found = [hook for hook in hooks if "sleep" in hook]
    for hook in found:
        seconds: Mapping[str, Any] = hook.pop("sleep")
        hook["exec"] = {"command": ["sleep", str(seconds.get("seconds"))]}
    return bool(found)


CHANGES: Final = (
    # It is part of a port's key there, and has no default yet when an object is applied.
    Change(21, "protocol TCP, the default, written out", _protocols),
    Change(
        21,
        "PodDisruptionBudget of policy/v1 as v1beta1",
        _version("PodDisruptionBudget", "policy/v1", "policy/v1beta1"),
    ),
    Change(
        23,
        "HorizontalPodAutoscaler of autoscaling/v2 as v2beta2",
        _version("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v2beta2"),
    ),
    Change(24, "service of a gRPC probe, asked as a probe of its port", _probes, drops=True),
    Change(30, "sleep before a container's end, asked as a command", _sleeps, drops=True),
)
"""By version."""
