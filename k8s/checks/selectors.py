"""Whether selectors select: of Services, budgets, monitors, workloads and policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import Object, Problem, Rendering, shown

CLIENTS: Final = {"lexico-offload/client": "true"}
"""Labels of pods that are not ours."""
H2C: Final = "kubernetes.io/h2c"
"""HTTP/2 in plaintext, to gateways and meshes."""
HTTPS: Final = "https"


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector of Kubernetes selects an object with these labels."""
    wanted: Mapping[str, str] = selector.get("matchLabels", {})
    if any(labels.get(key) != value for key, value in wanted.items()):
        return False
    for each in selector.get("matchExpressions", ()):
        value, operator = labels.get(each["key"]), each["operator"]
        values: Sequence[str] = each.get("values", ())
        if not {
            "In": value in values,
            "NotIn": value not in values,
            "Exists": value is not None,
            "DoesNotExist": value is None,
        }[operator]:
            return False
    return True


def check(rendering: Rendering) -> list[Problem]:
    """Selectors that select nothing, or other pods than they should."""
    everyone = pods(rendering)
    found = []
    for each in rendering.objects:
        looked = _CHECKS.get(each["kind"])
        if looked is not None:
            found += [Problem(shown(each), what) for what in looked(each, everyone)]
    return found


def _service(service: Object, everyone: Sequence[Pod]) -> Iterator[str]:
    selected = _selected({"matchLabels": service["spec"]["selector"]}, everyone)
    if not selected:
        yield "selects no pod"
    for port in service["spec"]["ports"]:
        target = port.get("targetPort", port["port"])
        for pod in selected:
            number = pod.port(target)
            spoken = HTTPS if _has_tls(pod) else H2C
            if port.get("appProtocol", spoken) != spoken:
                yield f"port {port['port']}: appProtocol is not {spoken}, which {pod.owner} speaks"
            if number is None:
                yield f"{pod.owner} has no port {target}"
            elif service["spec"].get("clusterIP") == "None" and number != port["port"]:
                yield f"is headless: port {port['port']} of it is port {number} of {pod.owner}"


def _has_tls(pod: Pod) -> bool:
    return any(
        variable["name"] == "LEXICO_TLS__CERTIFICATE"
        for container in pod.containers
        for variable in container.get("env", ())
    )


def _budget(budget: Object, everyone: Sequence[Pod]) -> Iterator[str]:
    spec = budget["spec"]
    selected = _selected(spec["selector"], everyone)
    if not selected:
        yield "selects no pod"
    if any(pod.kind == "RayService" for pod in selected) and not isinstance(
        spec.get("minAvailable"), int
    ):
        yield "is of pods that no controller of Kubernetes owns: give minAvailable, a whole number"


def _workload(workload: Object, everyone: Sequence[Pod]) -> Iterator[str]:
    selector = workload["spec"].get("selector")
    if selector is None:
        return
    if not matches(selector, workload["spec"]["template"]["metadata"].get("labels", {})):
        yield "its selector does not select its own template"
    for pod in _selected(selector, everyone):
        if pod.owner != shown(workload):
            yield f"its selector selects {pod.owner} too"
    for spread in workload["spec"]["template"]["spec"].get("topologySpreadConstraints", ()):
        labels = workload["spec"]["template"]["metadata"].get("labels", {})
        if not matches(spread["labelSelector"], labels):
            yield "topologySpreadConstraints do not count its own pods"


def _monitor(monitor: Object, everyone: Sequence[Pod]) -> Iterator[str]:
    selected = _selected(monitor["spec"]["selector"], everyone)
    if not selected:
        yield "selects no pod"
    for endpoint in monitor["spec"]["podMetricsEndpoints"]:
        for pod in selected:
            if pod.port(endpoint["port"]) is None:
                yield f"{pod.owner} has no port {endpoint['port']}"


def _policy(policy: Object, everyone: Sequence[Pod]) -> Iterator[str]:
    spec = policy["spec"]
    selected = _selected(spec["podSelector"], everyone)
    if not selected:
        yield "selects no pod"
    for rule in spec.get("ingress", ()):
        for peer in rule.get("from", ()):
            yield from _peer(peer, everyone)
        yield from _ports(rule, selected)
    for rule in spec.get("egress", ()):
        others: list[Pod] = []
        for peer in rule.get("to", ()):
            yield from _peer(peer, everyone)
            if "namespaceSelector" not in peer and "podSelector" in peer:
                others += _selected(peer["podSelector"], everyone)
        yield from _ports(rule, others)


def _peer(peer: Mapping[str, Any], everyone: Sequence[Pod]) -> Iterator[str]:
    ours = "podSelector" in peer and "namespaceSelector" not in peer
    selector = peer.get("podSelector", {})
    if ours and not _selected(selector, everyone) and selector.get("matchLabels") != CLIENTS:
        yield f"names pods that are not there: {selector}"


def _ports(rule: Mapping[str, Any], at: Sequence[Pod]) -> Iterator[str]:
    for port in rule.get("ports", ()):
        name = port["port"]
        if isinstance(name, str) and not any(pod.port(name) for pod in at):
            yield f"no pod there has a port {name}"


def _selected(selector: Mapping[str, Any], everyone: Sequence[Pod]) -> list[Pod]:
    return [pod for pod in everyone if matches(selector, pod.labels)]


_CHECKS: Final = {
    "Deployment": _workload,
    "NetworkPolicy": _policy,
    "PodDisruptionBudget": _budget,
    "PodMonitor": _monitor,
    "Service": _service,
    "StatefulSet": _workload,
}
