"""Broken objects: shapes, rights, names, selectors and policies."""

from __future__ import annotations

import pytest

from tests.support.broken_manifests import Broken, Case, drop, put, said, swap

HEAD = "spec.rayClusterConfig.headGroupSpec.template.spec"
WORKER = "spec.rayClusterConfig.workerGroupSpecs.0.template.spec"
POD = "spec.template.spec"
CONTAINER = f"{POD}.containers.0"
ARGUMENTS = f"{CONTAINER}.args".replace(".", "/")
SETTINGS = "data/lexico.toml"

CASES: list[Case] = [
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
        put(f"{CONTAINER}.readinessProbe.grpc.port", 7414),
        "asks port 7414, which is not there",
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
        put("spec.minAvailable", 2),
        "keeps 2 of 2: no node can be drained",
    ),
    (
        "production",
        "Service/lexico-offload",
        put("spec.ports.0.appProtocol", "kubernetes.io/h2c"),
        "port 7411: appProtocol is not https, which RayService/lexico ingress speaks",
    ),
    (
        "production",
        "Service/lexico-reload",
        put("spec.ports.0.appProtocol", "kubernetes.io/h2c"),
        "port 7412: appProtocol is not https, which Deployment/lexico-reload speaks",
    ),
    (
        "base",
        "Service/lexico-reload",
        put("spec.ports.0.appProtocol", "https"),
        "appProtocol is not kubernetes.io/h2c",
    ),
    (
        "base",
        "PodDisruptionBudget/lexico-offload",
        put(
            "spec",
            {"maxUnavailable": 1, "selector": {"matchLabels": {"lexico-offload/ray": "true"}}},
        ),
        "give minAvailable, a whole number",
    ),
    (
        "base",
        "HorizontalPodAutoscaler/lexico-reload",
        put("spec.scaleTargetRef.name", "x"),
        "scales x",
    ),
    ("base", "Deployment/lexico-reload", put("spec.replicas", 3), "would undo the scaling"),
    (
        "production",
        "PodMonitor/lexico-offload",
        put("spec.podMetricsEndpoints.0.port", "metric"),
        "has no port metric",
    ),
    # a store over TLS
    (
        "store-tls",
        "Certificate/lexico-store",
        drop,
        "StatefulSet/lexico-store: Secret lexico-store-tls is not there",
    ),
    (
        "store-tls",
        "ConfigMap/lexico-store-url",
        swap("data/url-tls", "rediss:", "redis:"),
        "Deployment/lexico-reload container reload: LEXICO_STORE is redis, and the store has TLS",
    ),
    (
        "base",
        "RayService/lexico",
        put(f"{WORKER}.containers.0.env.2.valueFrom.configMapKeyRef.key", "url-tls"),
        "LEXICO_STORE is rediss, and the store no TLS",
    ),
    # engines
    (
        "vllm",
        "Deployment/vllm",
        swap(ARGUMENTS + "/5", '"token_file"', '"token"'),
        "--kv-transfer-config: kv_connector_extra_config: token",
    ),
    (
        "sglang",
        "Deployment/sglang",
        swap(ARGUMENTS + "/9", "lexico-offload:7411", "lexico-offload:7412"),
        "lexico-offload:7412 is no Service's port",
    ),
    (
        "sglang",
        "Deployment/sglang",
        swap(ARGUMENTS + "/9", '"lexico",', '"lexico"'),
        "--hicache-storage-backend-extra-config: is not to be read",
    ),
    (
        "vllm",
        "Deployment/vllm",
        swap(ARGUMENTS + "/5", "/etc/lexico/token/token", "/etc/lexico/token/tokens"),
        "/etc/lexico/token/tokens is not among token",
    ),
    ("vllm", "NetworkPolicy/vllm", put("spec.egress", []), "may not connect to RayService/lexico"),
    # who talks to whom
    (
        "train",
        "NetworkPolicy/lexico-default-deny",
        drop,
        "Job/lexico-train: ingress is under no policy",
    ),
    (
        "base",
        "NetworkPolicy/lexico-store-clients",
        drop,
        "may not connect to StatefulSet/lexico-store",
    ),
    ("base", "NetworkPolicy/lexico-dns", drop, "may not ask for names of others"),
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
]


@pytest.mark.parametrize(("rendering", "of", "broken", "told"), CASES)
def test_a_broken_copy_is_refused(rendering: str, of: str, broken: Broken, told: str) -> None:
    found = said(rendering, of, broken)
    assert any(told in each for each in found), "\n".join(found)
