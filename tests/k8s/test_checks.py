"""The checks of k8s/ find nothing in what is there, and each broken copy of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from k8s.checks import images
from k8s.checks.all_checks import problems
from k8s.checks.rendering import Rendering, base_with, everything, overlay

Broken = Callable[[Any], object]

HEAD = "spec.rayClusterConfig.headGroupSpec.template.spec"
WORKER = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec"
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"


def test_nothing_is_wrong_with_what_is_there() -> None:
    found = [f"{r.name}: {problem}" for r in everything() for problem in problems(r)]
    assert found == []
    assert images.check() == []


def put(path: str, value: object) -> Broken:
    """Sets a field of an object; None takes it out."""

    def broken(item: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            item = item[part]
        if value is None:
            del item[last]
        elif isinstance(item, list) and last == len(item):
            item.append(value)
        else:
            item[last] = value

    return broken


def swap(path: str, old: str, new: str) -> Broken:
    """Replaces a part of a text."""

    def broken(item: Any) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split("/")]
        for part in way:
            item = item[part]
        assert old in item[last]
        item[last] = item[last].replace(old, new)

    return broken


def environment(path: str, name: str, value: str) -> Broken:
    """Sets a variable of a container."""

    def broken(item: Any) -> None:
        for part in path.split("."):
            item = item[int(part) if part.isdigit() else part]
        found = [each for each in item.get("env", ()) if each["name"] == name]
        if found:
            found[0]["value"] = value
        else:
            item.setdefault("env", []).append({"name": name, "value": value})

    return broken


def drop(_: Any) -> str:
    """Takes the object out."""
    return "drop"


OVERLAYS = ("dev", "production")
COMPONENTS = {"train": ("train",)}
SERVE_CONFIG = "spec/serveConfigV2"
SETTINGS = "data/lexico.toml"

# rendering (an overlay, the base, or the base with a component), kind and name, what is done to the object, what is said of it
CASES: list[tuple[str, str, Broken, str]] = [
    # what an API server would refuse for its shape
    ("base", "Deployment/lexico-reload", put("spec.stategy", {}), "'stategy' was unexpected"),
    ("base", "RayService/lexico", put("spec.rayClusterConfig.gruopName", "x"), "'gruopName' was"),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.authOptions.mode", "tokn"),
        "'tokn' is not one of",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.containers.0.readinesProbe", {}),
        "'readinesProbe' was unexpected",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.workerGroupSpecs.0.maxReplicas", "2"),
        "'2' is not of type 'integer'",
    ),
    (
        "production",
        "Certificate/lexico-server",
        put("spec.dnsName", ["x"]),
        "'dnsName' was unexpected",
    ),
    ("production", "PodMonitor/lexico-reload", put("spec.endpoints", []), "'endpoints' was"),
    ("base", "Service/lexico-reload", put("apiVersion", "v7"), "find schema for kind Service"),
    # what pods may do
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.autoscalerOptions.securityContext", None),
        "autoscaler: readOnlyRootFilesystem is not true",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{HEAD}.securityContext.runAsUser", 0),
        "RayService/lexico head: runs as no user of 10000 or above",
    ),
    ("base", "Deployment/lexico-reload", put(f"{POD}.hostNetwork", True), "has hostNetwork"),
    (
        "base",
        "StatefulSet/lexico-store",
        put(f"{POD}.volumes.3", {"name": "host", "hostPath": {"path": "/"}}),
        "volume host is a hostPath",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.securityContext.capabilities.drop", ["NET_RAW"]),
        "does not drop ALL capabilities",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{POD}.automountServiceAccountToken", True),
        "automountServiceAccountToken",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.resources.requests.memory", "3Gi"),
        "asks for more memory than its limit",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.image", "lexico-offload:latest"),
        "names no version",
    ),
    # what is named and not there
    ("base", "ServiceAccount/lexico-reload", drop, "service account lexico-reload is not there"),
    ("base", "ConfigMap/lexico-config", drop, "is not there"),
    ("base", "Service/lexico-store", drop, "serviceName lexico-store is no Service"),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{POD}.volumes.1.secret.items.0.key", "pasword"),
        "Secret lexico-store has no pasword",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.volumeMounts.1.name", "stor"),
        "has no volume stor",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.volumeMounts.3.subPath", "tokens"),
        "is a subPath",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.readinessProbe.tcpSocket.port", "helth"),
        "asks port helth",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.ports.0.name", "reload-of-pages-x"),
        "no name of at most 15 characters",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "/etc/lexico/tokens/tokens", "/etc/lexico/tokens/token"),
        "/etc/lexico/tokens/token is not among tokens",
    ),
    (
        "base",
        "ConfigMap/lexico-store-url",
        swap("data/url", "/etc/lexico/store/password", "/etc/lexico/secrets/password"),
        "/etc/lexico/secrets/password is mounted nowhere",
    ),
    (
        "base",
        "ConfigMap/lexico-store-config",
        swap("data/valkey.conf", "users.acl", "user.acl"),
        "/etc/valkey/auth/user.acl is not among",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.gcsFaultToleranceOptions.redisAddress", "lexico-ray-state:6380"),
        "lexico-ray-state:6380 is no Service's port",
    ),
    (
        "production",
        "Certificate/lexico-server",
        put("spec.issuerRef.name", "lexco"),
        "issuer lexco is not there",
    ),
    ("production", "Certificate/lexico-server", drop, "Secret lexico-server-tls is not there"),
    # selectors
    (
        "base",
        "Service/lexico-reload",
        put("spec.selector", {"app.kubernetes.io/component": "relod"}),
        "selects no pod",
    ),
    (
        "base",
        "Service/lexico-reload",
        put("spec.ports.0.targetPort", "http"),
        "has no port http",
    ),
    ("base", "Service/lexico-offload", put("spec.ports.0.port", 80), "is headless"),
    (
        "base",
        "Deployment/lexico-reload",
        put("spec.selector.matchLabels", {"app.kubernetes.io/component": "relod"}),
        "does not select its own template",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put("spec.selector.matchLabels", {"app.kubernetes.io/name": "lexico-offload"}),
        "selects StatefulSet/lexico-store too",
    ),
    (
        "base",
        "PodDisruptionBudget/lexico-offload",
        put("spec", {"maxUnavailable": 1, "selector": {"matchLabels": {"lexico-offload/ray": "true"}}}),
        "give minAvailable, a whole number",
    ),
    ("base", "HorizontalPodAutoscaler/lexico-reload", put("spec.scaleTargetRef.name", "x"), "scales x"),
    ("base", "Deployment/lexico-reload", put("spec.replicas", 3), "would undo the scaling"),
    (
        "production",
        "PodMonitor/lexico-offload",
        put("spec.podMetricsEndpoints.0.port", "metric"),
        "has no port metric",
    ),
    # who talks to whom
    ("train", "NetworkPolicy/lexico-default-deny", drop, "Job/lexico-train: ingress is under no policy"),
    ("base", "NetworkPolicy/lexico-store-clients", drop, "may not connect to StatefulSet/lexico-store"),
    ("base", "NetworkPolicy/lexico-reload", drop, "nodes may not connect to port 7412"),
    ("base", "NetworkPolicy/lexico-ray", drop, "may not connect to RayService/lexico ingress port"),
    (
        "base",
        "NetworkPolicy/lexico-store",
        put("spec.ingress.0.from", [{"podSelector": {}, "namespaceSelector": {}}]),
        "anybody may connect to port 6379",
    ),
    (
        "base",
        "NetworkPolicy/lexico-ray-state",
        put("spec.podSelector.matchLabels", {"app.kubernetes.io/component": "state"}),
        "selects no pod",
    ),
    (
        "production",
        "NetworkPolicy/lexico-sentinel",
        put("spec.egress", []),
        "StatefulSet/lexico-sentinel: may not connect to StatefulSet/lexico-store",
    ),
    # names
    (
        "base",
        "Service/lexico-reload",
        put("metadata.namespace", "default"),
        "is in none of the namespaces lexico",
    ),
    (
        "base",
        "Namespace/lexico",
        put("metadata.labels", {"pod-security.kubernetes.io/enforce": "baseline"}),
        "does not enforce restricted pods",
    ),
    # settings, by the code that reads them
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "drain_s", "drain_seconds"),
        "listen.drain_seconds is no setting",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "port = 7412", "port = 7413"),
        "its port reload is 7412, and reload.port is 7413",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, 'token_file = "/etc/lexico/tokens/tokens"', ""),
        "listening on 0.0.0.0 without tokens",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap(SETTINGS, "drain_s = 15.0", "drain_s = 60.0"),
        "is killed after 45 s",
    ),
    (
        "base",
        "ConfigMap/lexico-config",
        swap("data/policy.toml", "page_ttl_s", "page_ttl"),
        "policy.toml: ",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        environment(CONTAINER, "LEXICO_RELOAD__MAX_PAGE", "3"),
        "LEXICO_RELOAD__MAX_PAGE is no setting",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        environment(CONTAINER, "LEXICO_LOG__LEVEL", "debug"),
        "differently: keep one of them",
    ),
    (
        "base",
        "Deployment/lexico-reload",
        put(f"{CONTAINER}.args.0", "reload"),
        "invalid choice: 'reload'",
    ),
    (
        "dev",
        "Deployment/lexico",
        put(f"{CONTAINER}.args.1", "--configuration"),
        "unrecognized arguments",
    ),
    (
        "dev",
        "Deployment/lexico",
        put(f"{POD}.volumes.1.emptyDir.sizeLimit", "64Mi"),
        "/dev/shm is smaller than pages in flight need",
    ),
    # Ray
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.rayVersion", "2.59.0"),
        "rayVersion 2.59.0 is not the locked one",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.authOptions.mode", "disabled"),
        "authOptions.mode is not token",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.headGroupSpec.rayStartParams.num-cpus", "1"),
        "the head takes work",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.containers.0.readinessProbe", None),
        "group ingress: has no readinessProbe",
    ),
    (
        "base",
        "RayService/lexico",
        swap(SERVE_CONFIG, "application:build", "application:built"),
        "application:built is not there",
    ),
    (
        "base",
        "RayService/lexico",
        swap(SERVE_CONFIG, "ingresses:", "ingress:"),
        "args.ingress is no argument",
    ),
    (
        "base",
        "RayService/lexico",
        swap(SERVE_CONFIG, "Disabled", "EveryNode"),
        "proxy_location is not Disabled",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.workerGroupSpecs.1.minReplicas", 5),
        "needs minReplicas <= replicas <= maxReplicas",
    ),
    (
        "base",
        "RayService/lexico",
        environment(f"{WORKER}.containers.0", "LEXICO_ENCODER__NUM_GPUS", "2"),
        "head and workers have different settings",
    ),
    (
        "base",
        "RayService/lexico",
        put("spec.rayClusterConfig.workerGroupSpecs.0.rayStartParams.object-store-memory", "9000000000"),
        "object-store-memory is not within /dev/shm",
    ),
]


@pytest.mark.parametrize(("name", "of", "broken", "told"), CASES)
def test_a_broken_copy_is_refused(name: str, of: str, broken: Broken, told: str) -> None:
    whole = overlay(name) if name in OVERLAYS else base_with(*COMPONENTS.get(name, ()))
    objects = copy.deepcopy(list(whole.objects))
    kind, _, start = of.partition("/")
    # ConfigMaps have a digest of their content behind their name.
    (item,) = [
        each
        for each in objects
        if each["kind"] == kind
        and (each["metadata"]["name"] == start or _without_digest(each) == start)
    ]
    if broken(item) == "drop":
        objects.remove(item)
    found = problems(Rendering(name, tuple(objects)))
    assert any(told in str(problem) for problem in found), "\n".join(map(str, found))


def _without_digest(item: Any) -> str:
    return str(item["metadata"]["name"].rpartition("-")[0]) if item["kind"] == "ConfigMap" else ""


def test_a_containerfile_is_looked_at(tmp_path: Any) -> None:
    file = tmp_path / "Containerfile"
    file.write_text("FROM debian\nRUN cd /tmp\n")
    told = [str(problem) for problem in images.check([file])]
    assert any("DL3006" in each for each in told)
    assert any("DL3003" in each for each in told)
