"""Who may talk to whom by the policies, against who must and who must not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from k8s.checks.pods import Pod, pods
from k8s.checks.rendering import Object, Problem, Rendering
from k8s.checks.selectors import CLIENTS, matches

NODE: Final = Pod("a node", "Pod", CLIENTS, {})
STRANGER: Final = Pod("a stranger", "Pod", {"app": "stranger"}, {})

RAY: Final = ("ray-head", "ingress", "encoder")
ENGINES: Final[Mapping[str, int]] = {"vllm": 8000, "sglang": 30_000}
"""Component → the port of its API."""
MUST: Final = (
    *((source, "store", 6379) for source in ("ingress", "encoder", "reload")),
    *((source, target, 20_001) for source in RAY for target in RAY),
    ("ray-head", "ray-state", 6379),
    *((source, "sentinel", 26379) for source in ("ingress", "encoder", "reload", "store")),
    *(("sentinel", target, port) for target, port in (("sentinel", 26379), ("store", 6379))),
    ("smoke-test", "ingress", 7411),
    ("smoke-test", "reload", 7412),
    ("smoke-test", "service", 7411),
    ("smoke-test", "service", 7412),
    *(("store-cluster", "store", port) for port in (6379, 16379)),
    *((engine, "ingress", 7411) for engine in ENGINES),
    *((engine, "reload", 7412) for engine in ENGINES),
)
"""Components and ports of connections without which something does not work, where both are
there."""
MUST_NOT: Final = (
    *((source, "store", 6379) for source in ("ray-head", "smoke-test", "train", "ray-state")),
    *((source, "ray-state", 6379) for source in ("ingress", "encoder", "reload", "store")),
    *((source, "ray-head", 8265) for source in ("reload", "store", "smoke-test", "train")),
    *((source, "ingress", 20_001) for source in ("reload", "store", "smoke-test", "train")),
    ("reload", "ingress", 7411),
    ("train", "reload", 7412),
    *((engine, target, 6379) for engine in ENGINES for target in ("store", "ray-state")),
    *(
        (other, engine, port)
        for engine, port in ENGINES.items()
        for other in ("ingress", "reload", "store")
    ),
)


def check(rendering: Rendering) -> list[Problem]:
    """Connections that are needed and refused, or let through and not needed."""
    everyone = pods(rendering)
    policies = list(rendering.of_kind("NetworkPolicy"))
    found = []
    for pod in everyone:
        for way in ("Ingress", "Egress"):
            if not any(way in p["spec"]["policyTypes"] for p in _of(policies, pod)):
                found.append(Problem(pod.owner, f"{way.lower()} is under no policy"))
    for source, target, port in MUST:
        for a, b in _pairs(everyone, source, target):
            if not allowed(policies, a, b, port):
                found.append(Problem(a.owner, f"may not connect to {b.owner} port {port}"))
    for source, target, port in MUST_NOT:
        for a, b in _pairs(everyone, source, target):
            if allowed(policies, a, b, port):
                found.append(Problem(a.owner, f"may connect to {b.owner} port {port}"))
    talking = {source for source, target, _ in MUST if any(_pairs(everyone, source, target))}
    for pod in everyone:
        if pod.component in talking and not _resolves(policies, pod):
            found.append(Problem(pod.owner, "may not ask for names of others (DNS)"))
    for pod in everyone:
        doors = _doors(pod)
        for port in doors:
            if not _let_in(policies, NODE, pod, port):
                found.append(Problem(pod.owner, f"nodes may not connect to port {port}"))
        for port in (6379, 8265, 9464, 20_001, *doors):
            if _let_in(policies, STRANGER, pod, port):
                found.append(Problem(pod.owner, f"anybody may connect to port {port}"))
    return found


def allowed(policies: Sequence[Object], source: Pod, target: Pod, port: int) -> bool:
    """Whether both ends let a TCP connection through."""
    return _let_out(policies, source, target, port) and _let_in(policies, source, target, port)


def _resolves(policies: Sequence[Object], pod: Pod) -> bool:
    """Whether a pod may ask the DNS of its cluster."""
    over = [p for p in _of(policies, pod) if "Egress" in p["spec"]["policyTypes"]]
    rules = [rule for policy in over for rule in policy["spec"].get("egress", ())]
    dns = {"protocol": "UDP", "port": 53}
    return not over or any(dns in rule.get("ports", ()) for rule in rules)


def _doors(pod: Pod) -> list[int]:
    ports = [pod.port(name) for name in ("offload", "reload")]
    return [port for port in ports if port is not None]


def _pairs(everyone: Sequence[Pod], source: str, target: str) -> Iterator[tuple[Pod, Pod]]:
    for a in everyone:
        for b in everyone:
            if (a.component, b.component) == (source, target):
                yield a, b


def _of(policies: Sequence[Object], pod: Pod) -> list[Object]:
    return [each for each in policies if matches(each["spec"]["podSelector"], pod.labels)]


def _let_out(policies: Sequence[Object], source: Pod, target: Pod, port: int) -> bool:
    over = [p for p in _of(policies, source) if "Egress" in p["spec"]["policyTypes"]]
    rules = [rule for policy in over for rule in policy["spec"].get("egress", ())]
    return not over or any(_fits(rule, "to", target, target, port) for rule in rules)


def _let_in(policies: Sequence[Object], source: Pod, target: Pod, port: int) -> bool:
    over = [p for p in _of(policies, target) if "Ingress" in p["spec"]["policyTypes"]]
    rules = [rule for policy in over for rule in policy["spec"].get("ingress", ())]
    return not over or any(_fits(rule, "from", source, target, port) for rule in rules)


def _fits(rule: Mapping[str, Any], side: str, peer: Pod, target: Pod, port: int) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(_is_port(each["port"], target, port) for each in ports):
        return False
    peers = rule.get(side)
    return peers is None or any(_is_peer(each, peer) for each in peers)


def _is_port(named: str | int, target: Pod, port: int) -> bool:
    return port == (target.port(named) if isinstance(named, str) else named)


def _is_peer(named: Mapping[str, Any], peer: Pod) -> bool:
    """Peers that are named by an address alone are none of the pods here, and a namespace that is
    selected by labels is another one.
    """
    if "podSelector" not in named or named.get("namespaceSelector", {}).get("matchLabels"):
        return False
    return matches(named["podSelector"], peer.labels)
