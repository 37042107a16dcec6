"""Broken copies of the manifests, each refused by a real API server: `make k8s-server-check`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, Final

import psutil
import pytest

from k8s.checks import definitions
from k8s.checks.rendering import Object, base_with
from k8s.server import cluster
from k8s.server.conversion import converted
from tests.support.api_servers import WANTED, Servers, alone, servers
from tests.support.broken_manifests import Case, named, put, whole

pytestmark = pytest.mark.skipif(not WANTED, reason="builds servers: make k8s-server-check")

CLUSTER: Final = "spec.rayClusterConfig"
HEAD: Final = f"{CLUSTER}.headGroupSpec.template.spec"
POD: Final = "spec.template.spec"
CONTAINER: Final = f"{POD}.containers.0"
RELOAD: Final = "Deployment/lexico-reload"
RBAC: Final = "rbac.authorization.k8s.io"

CASES: list[Case] = [
    # built-in kinds
    ("base", RELOAD, put("spec.revisionHistoryLimit", "three"), ".spec.revisionHistoryLimit"),
    ("base", RELOAD, put("spec.stategy", {}), ".spec.stategy: field not declared in schema"),
    (
        "base",
        RELOAD,
        put(f"{CONTAINER}.ports.0.name", "a-port-of-many-words"),
        "must be no more than 15 characters",
    ),
    ("base", RELOAD, put(f"{CONTAINER}.ports.0.containerPort", 74120), "between 1 and 65535"),
    ("base", RELOAD, put("metadata.labels.team", "not a label"), "a valid label must"),
    ("base", RELOAD, put(f"{CONTAINER}.resources.limits.memory", "2Gib"), "quantities must match"),
    (
        "base",
        RELOAD,
        put(f"{CONTAINER}.resources.requests.memory", "3Gi"),
        "must be less than or equal to memory limit",
    ),
    (
        "base",
        RELOAD,
        put("spec.selector.matchLabels", {"app": "other"}),
        "`selector` does not match template `labels`",
    ),
    (
        "base",
        RELOAD,
        put(f"{CONTAINER}.volumeMounts.0.name", "nothing"),
        'volumeMounts[0].name: Not found: "nothing"',
    ),
    (
        "base",
        "Service/lexico-reload",
        put("spec.ports.1", {"name": "again", "port": 7412, "protocol": "TCP"}),
        "duplicate entries for key",
    ),
    (
        "base",
        "NetworkPolicy/lexico-ray-head",
        put("spec.egress.0", {"to": [{"ipBlock": {"cidr": "10.0.0.0/99"}}]}),
        "not a valid CIDR",
    ),
    (
        "base",
        "PodDisruptionBudget/lexico-reload",
        put("spec.minAvailable", 1),
        "cannot be both set",
    ),
    (
        "base",
        "HorizontalPodAutoscaler/lexico-reload",
        put("spec.maxReplicas", 1),
        "must be greater than or equal to `minReplicas`",
    ),
    (
        "smoke-test",
        "Job/lexico-smoke-test",
        put(f"{POD}.restartPolicy", "Always"),
        "restartPolicy: Required value",
    ),
    # admission: accounts, and what pods may do
    ("base", RELOAD, put(f"{POD}.serviceAccountName", "lexico-none"), '"lexico-none" not found'),
    ("base", RELOAD, put(f"{POD}.hostNetwork", True), "Host network is not allowed to be used"),
    (
        "base",
        RELOAD,
        put(f"{CONTAINER}.securityContext.runAsUser", 0),
        "running with the root UID is forbidden",
    ),
    # custom resources
    (
        "base",
        "RayService/lexico",
        put(f"{CLUSTER}.gruopName", "x"),
        "gruopName: field not declared",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{CLUSTER}.workerGroupSpecs.0.maxReplicas", "2"),
        "maxReplicas: expected numeric",
    ),
    ("base", "RayService/lexico", put(f"{CLUSTER}.authOptions.mode", "tokn"), 'value: "tokn"'),
    ("base", "RayService/lexico", put(f"{CLUSTER}.managedBy", "somebody"), "failed rule"),
    (
        "base",
        "RayService/lexico",
        put(f"{CLUSTER}.workerGroupSpecs.0.template", None),
        "template: Required value",
    ),
    ("production", "Certificate/lexico-server", put("spec.issuerRef", None), "issuerRef: Required"),
    (
        "production",
        "PodMonitor/lexico-reload",
        put("spec.podMetricsEndpoints.0.interval", "soon"),
        "in body should match",
    ),
    (
        "production",
        "PrometheusRule/lexico",
        put("spec.groups.0.rules.0.expr", None),
        "expr: Required",
    ),
    # pods within custom resources
    (
        "base",
        "RayService/lexico",
        put(f"{HEAD}.containers.0.volumeMounts.0.name", "nothing"),
        'RayService/lexico head as Pod: Pod "rayservice-lexico-head" is invalid',
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{HEAD}.containers.0.ports.1.containerPort", 6379),
        "RayService/lexico head as Pod: ",
    ),
    ("base", "RayService/lexico", put(f"{HEAD}.hostPID", True), "Host PID is not allowed"),
]


@pytest.fixture(scope="module")
def real() -> Iterator[Servers]:
    with servers() as started:
        yield started


@pytest.mark.parametrize(
    ("rendering", "of", "broken", "what"), CASES, ids=[f"{each[1]}-{each[3]}" for each in CASES]
)
def test_a_broken_copy_is_refused(
    real: Servers, rendering: str, of: str, broken: Any, what: str
) -> None:
    told = real.said(alone(rendering, of, broken))
    assert any(what in each and of.partition("/")[2] in each for each in told), told


def test_what_was_broken_is_accepted_whole(real: Servers) -> None:
    for rendering in sorted({case[0] for case in CASES}):
        assert real.said(whole(rendering)) == []


def granted(kind: str, of: str, rule: Object) -> list[Object]:
    """A role with one rule, and its binding to an account."""
    place = {"namespace": "lexico"} if kind == "Role" else {}
    metadata = {"name": "lexico-more", **place}
    head = {"apiVersion": f"{RBAC}/v1", "metadata": metadata}
    subject = {"kind": "ServiceAccount", "name": of, "namespace": "lexico"}
    to = {"apiGroup": RBAC, "kind": kind, "name": metadata["name"]}
    binding = {**head, "kind": f"{kind}Binding", "roleRef": to, "subjects": [subject]}
    return [{**head, "kind": kind, "rules": [rule]}, binding]


@pytest.mark.parametrize(
    ("kind", "of", "rule", "what"),
    [
        (
            "Role",
            "lexico-reload",
            {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]},
            "ServiceAccount/lexico-reload: may get secrets, and nothing needs it",
        ),
        (
            "Role",
            "lexico-ray-head",
            {"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["create"]},
            "ServiceAccount/lexico-ray-head: may create pods/exec in lexico",
        ),
        (
            "ClusterRole",
            "lexico-ray-head",
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
            "ServiceAccount/lexico-ray-head: may list pods in other namespaces",
        ),
        (
            "Role",
            "lexico-reload",
            {"apiGroups": [""], "resources": ["pods"], "verbs": []},
            "Role/lexico-more: Role.rbac.authorization.k8s.io",
        ),
        (
            "Role",
            "lexico-reload",
            {"resources": ["pods"], "verbs": ["get"]},
            "resource rules must supply at least one api group",
        ),
        (
            "Role",
            "lexico-reload",
            {"apiGroup": [""], "resources": ["pods"], "verbs": ["get"]},
            "field not declared in schema",
        ),
    ],
)
def test_rights_that_nothing_needs_are_refused(
    real: Servers, kind: str, of: str, rule: Object, what: str
) -> None:
    more = granted(kind, of, rule)
    told = real.said(alone("base", "RayService/lexico", lambda _: None, *more))
    assert any(what in each for each in told), told


def test_rights_are_gone_with_the_rendering_that_had_them(real: Servers) -> None:
    rule = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    more = granted("ClusterRole", "lexico-reload", rule)
    assert real.said(alone("base", RELOAD, lambda _: None, *more))
    assert real.said(alone("base", RELOAD, lambda _: None)) == []


@pytest.mark.parametrize(
    ("of", "path", "value", "what"),
    [
        (RELOAD, "spec.selector.matchLabels.more", "x", "field is immutable"),
        ("StatefulSet/lexico-store", "spec.serviceName", "x", "are forbidden"),
        (
            "RayService/lexico",
            f"{CLUSTER}.gcsFaultToleranceOptions.backend",
            "rocksdb",
            "failed rule",
        ),
    ],
)
def test_what_cannot_be_changed_later_is_refused(
    real: Servers, of: str, path: str, value: str, what: str
) -> None:
    item: Any = copy.deepcopy(named(base_with(), of))
    running = real.running
    server = running.custom if item["kind"] == "RayService" else running.built_in
    assert server is not None
    assert running.built_in is not None
    (namespace,) = base_with().of_kind("Namespace")
    assert running.built_in.apply(namespace, dry=False).good
    if item["kind"] == "RayService":
        put(f"{CLUSTER}.gcsFaultToleranceOptions.backend", "redis")(item)
    else:
        item = converted(item, 20).item
    assert server.apply(item, dry=False).good
    try:
        assert server.apply(item).good
        put(path, value)(item)
        if of == RELOAD:
            put("spec.template.metadata.labels.more", "x")(item)
        answer = server.apply(item)
        assert (answer.status, what in answer.why) == (422, True), answer.why
    finally:
        assert server.ask("DELETE", server.path(item)).good


def test_a_definition_that_is_refused_is_named(real: Servers) -> None:
    (name, definition), *_ = definitions.read().items()
    broken = copy.deepcopy(definition)
    put("spec.versions.0.schema.openAPIV3Schema.properties.spec.type", "objekt")(broken)
    with pytest.raises(cluster.Failed, match=f"refuses the definition of {name}.*objekt"):
        with cluster.running(real.found, {name: broken}):
            pass


def test_servers_end_with_the_block_however_it_ends(real: Servers) -> None:
    before = children()
    seen = set()

    def fail() -> None:
        with cluster.running(real.found, {}):
            seen.update(children() - before)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert len(seen) == len(real.found.found)
    assert children() == before


def children() -> set[int]:
    """Processes that this one started."""
    return {each.pid for each in psutil.Process().children(recursive=True)}
