"""Values of the chart: defaults are what the manifests have, and each has its places there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from k8s.chart.template import Expression
from k8s.checks.rendering import NAMESPACE, Object
from k8s.monitoring.alerts.alert import RUNBOOKS

COMPONENTS: Final[Mapping[str, str]] = {
    "cert-manager": ".Values.tls.enabled",
    "cluster": 'eq .Values.store.kind "cluster"',
    "cpu-workers": "not .Values.encoders.gpu",
    "external-redis": 'eq .Values.store.kind "external"',
    "monitoring": ".Values.monitoring.enabled",
    "otlp": ".Values.otlp.enabled",
    "sentinel": 'eq .Values.store.kind "sentinel"',
    "smoke-test": ".Values.smokeTest.enabled",
    "store-tls": 'and .Values.store.tls (ne .Values.store.kind "external")',
    "train": ".Values.train.enabled",
}
"""Component → when the chart has it."""

TURNS_ON: Final[Mapping[str, Mapping[str, Mapping[str, Any]]]] = {
    "cert-manager": {"tls": {"enabled": True}},
    "cluster": {"store": {"kind": "cluster"}},
    "cpu-workers": {"encoders": {"gpu": False}},
    "external-redis": {"store": {"kind": "external"}},
    "monitoring": {"monitoring": {"enabled": True}},
    "otlp": {"otlp": {"enabled": True}},
    "sentinel": {"store": {"kind": "sentinel"}},
    "smoke-test": {"smokeTest": {"enabled": True}},
    "store-tls": {"store": {"tls": True}},
    "train": {"train": {"enabled": True}},
}
"""Component → the values that it takes."""


@dataclass(frozen=True)
class Value:
    """One value."""

    name: str
    """Path among the values, with dots."""
    default: Any
    schema: Mapping[str, Any]
    """JSON schema of it, but for its description."""
    what: str


def _number(name: str, default: int, least: int, what: str) -> Value:
    return Value(name, default, {"type": "integer", "minimum": least}, what)


def _flag(name: str, default: bool, what: str) -> Value:
    return Value(name, default, {"type": "boolean"}, what)


def _text(name: str, default: str, what: str, pattern: str = ".") -> Value:
    return Value(name, default, {"type": "string", "pattern": pattern}, what)


OTLP: Final = "http://otel-collector.monitoring:4317"
_MEMORY: Final = "^[1-9][0-9]*(Mi|Gi)$"
_IMAGE: Final = "^[^\\s]+[:@][^\\s]+$"

VALUES: Final = (
    _text(
        "images.cpu", "lexico-offload:0.1.0", "Reload servers, Ray's head, the smoke test", _IMAGE
    ),
    _text("images.cuda", "lexico-offload-cuda:0.1.0", "Ingress, encoders, training", _IMAGE),
    _text("images.valkey", "docker.io/valkey/valkey:9.1.2", "The store's servers", _IMAGE),
    Value(
        "store.kind",
        "single",
        {"enum": ["single", "sentinel", "cluster", "external"]},
        "Shape of the page store; `external` takes its URL from the Secret lexico-external-redis",
    ),
    _text(
        "store.maxmemory",
        "6gb",
        "Bytes of pages of one server, as Valkey takes them",
        "^[1-9]\\d*[mg]b$",
    ),
    _text(
        "store.memory",
        "8Gi",
        "Memory of its pod, and size of its /data: a third above maxmemory",
        _MEMORY,
    ),
    _flag(
        "store.tls",
        False,
        "TLS between the store that comes along and its clients; turns tls.enabled on as well",
    ),
    _flag("tls.enabled", False, "TLS and certificates of clients, by cert-manager"),
    _flag(
        "monitoring.enabled",
        False,
        "PodMonitors and alerts of the Prometheus operator, and dashboards for Grafana's sidecar",
    ),
    _text("monitoring.runbooks", RUNBOOKS, "Where the pages of docs/runbooks are read, for alerts"),
    _flag("otlp.enabled", False, "Spans to the collector of otlp.endpoint"),
    _text(
        "otlp.endpoint",
        OTLP,
        "Where spans go by OTLP over gRPC; a policy lets them out to its namespace and port alone",
        "^https?://.",
    ),
    _number("ingress.nodes", 2, 1, "Workers with an ingress and an encoder each"),
    _flag("encoders.gpu", True, "One GPU for each encoder; else processors"),
    _number("encoders.more", 4, 0, "Most workers with an encoder alone, made and ended by load"),
    _text("encoders.memory", "16Gi", "Memory of a worker", _MEMORY),
    _number("reload.minReplicas", 2, 1, "Fewest reload servers"),
    _number("reload.maxReplicas", 8, 1, "Most reload servers"),
    Value(
        "policy",
        None,  # the file of the manifests
        {"type": "string"},
        "Lifetimes and quotas by tenant, as docs/tenants.md has them",
    ),
    Value("logLevel", "info", {"enum": ["debug", "info", "warning", "error"]}, "What servers log"),
    _flag("secrets.create", True, "Makes Secrets with random passwords, once: they are kept"),
    Value(
        "secrets.tenants",
        ["default"],
        {
            "type": "array",
            "items": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"},
        },
        "Tenants that are given a token when the Secrets are made",
    ),
    _flag("smokeTest.enabled", False, "A Job that puts a page and gets it back"),
    _flag("train.enabled", False, "A Job that learns a dictionary set on a GPU"),
)


def values_of(*components: str) -> dict[str, Any]:
    """The values that turn components on."""
    values: dict[str, Any] = {}
    for name in components:
        for group, given in TURNS_ON[name].items():
            values.setdefault(group, {}).update(given)
    return values


Change = Callable[[Any], Any]


def _is(expression: str) -> Change:
    return lambda _: Expression(f"{{{{ {expression} }}}}")


def _within(*pairs: tuple[str, str]) -> Change:
    """Replaces parts of a text; each must be there."""

    def change(text: Any) -> Expression:
        for old, new in pairs:
            if old not in text:
                raise ValueError(f"{old!r} is not in {text!r:.80}")
            text = text.replace(old, new)
        return Expression(text if "\n" in text else json.dumps(text).replace('\\"', '"'))

    return change


_GROUP: Final = "RayService/lexico:spec.rayClusterConfig.workerGroupSpecs"
_WORKER: Final = "template.spec.containers.0.resources"
_STORE: Final = "StatefulSet/lexico-store:spec.template.spec.containers.0.resources"
_DATA: Final = "StatefulSet/lexico-store:spec.template.spec.volumes.data.emptyDir.sizeLimit"
_CLAIM: Final = (
    "StatefulSet/lexico-store:spec.volumeClaimTemplates.0.spec.resources.requests.storage"
)

_OTLP: Final = "NetworkPolicy/lexico-otlp:spec.egress.0"
_COLLECTOR: Final = '.Values.otlp.endpoint | regexFind "//[^:/]+" | trimPrefix "//" | splitList "."'

PLACES: Final[Mapping[str, Change]] = {
    **{
        f"{_GROUP}.0.{name}": _is(".Values.ingress.nodes")
        for name in ("replicas", "minReplicas", "maxReplicas")
    },
    f"{_GROUP}.1.maxReplicas": _is(".Values.encoders.more"),
    **{
        f"{_GROUP}.{group}.{_WORKER}.{kind}.memory": _is(".Values.encoders.memory | quote")
        for group in (0, 1)
        for kind in ("requests", "limits")
    },
    "RayService/lexico:spec.serveConfigV2": _within(
        ("ingresses: 2", "ingresses: {{ .Values.ingress.nodes }}")
    ),
    "ConfigMap/lexico-config:data.lexico.toml": _within(
        ("min_replicas = 2", "min_replicas = {{ .Values.ingress.nodes }}"),
        (
            "max_replicas = 6",
            "max_replicas = {{ add .Values.ingress.nodes .Values.encoders.more }}",
        ),
        ('level = "info"', "level = {{ .Values.logLevel | quote }}"),
    ),
    "ConfigMap/lexico-config:data.policy.toml": _is(".Values.policy | toJson"),
    "ConfigMap/lexico-store-config:data.valkey.conf": _within(
        ("maxmemory 6gb", "maxmemory {{ .Values.store.maxmemory }}")
    ),
    # Of SERVICE.NAMESPACE:PORT; what it leaves out is the default's.
    f"{_OTLP}.to.0.namespaceSelector.matchLabels.kubernetes.io/metadata.name": _is(
        f'index (append ({_COLLECTOR}) "monitoring") 1 | quote'
    ),
    f"{_OTLP}.ports.0.port": _is(
        '.Values.otlp.endpoint | regexFind ":[0-9]+/?$" | trimAll ":/" | default "4317"'
    ),
    f"{_STORE}.requests.memory": _is(".Values.store.memory | quote"),
    f"{_STORE}.limits.memory": _is(".Values.store.memory | quote"),
    # A replica that is not empty takes a copy by a file: `guards` has this above maxmemory.
    _DATA: _is(".Values.store.memory | quote"),
    _CLAIM: _is(".Values.store.memory | quote"),
    # One at a time may be away: of one alone, itself, or its node could never be drained.
    "PodDisruptionBudget/lexico-offload:spec.minAvailable": _is("sub .Values.ingress.nodes 1"),
    "HorizontalPodAutoscaler/lexico-reload:spec.minReplicas": _is(".Values.reload.minReplicas"),
    "HorizontalPodAutoscaler/lexico-reload:spec.maxReplicas": _is(".Values.reload.maxReplicas"),
}
"""`Kind/name:path` → what stands there in a template. An item of a list is known by its number, or
its name."""

ALWAYS: Final = {
    value.default: Expression(f"{{{{ .Values.{value.name} | quote }}}}")
    for value in VALUES
    if value.name.startswith(("images.", "otlp.endpoint"))
}
_NAMES_OF_HOSTS: Final = f".{NAMESPACE}"


def with_expressions(item: Object) -> Any:
    """An object with the chart's expressions in its places."""
    where = f"{item['kind']}/{item['metadata']['name']}:"
    changes = {k.removeprefix(where): v for k, v in PLACES.items() if k.startswith(where)}
    made = _walk(item, "", changes)
    if "namespace" in made["metadata"]:
        made["metadata"]["namespace"] = Expression("{{ .Release.Namespace }}")
    return made


def unused(items: Iterator[Object]) -> set[str]:
    """Places that are in none of the objects."""
    owners = {f"{item['kind']}/{item['metadata']['name']}" for item in items}
    return {place for place in PLACES if place.partition(":")[0] not in owners}


def _walk(value: Any, path: str, changes: Mapping[str, Change]) -> Any:
    if path in changes:
        return changes[path](value)
    if isinstance(value, dict):
        return {k: _walk(v, f"{path}.{k}".lstrip("."), changes) for k, v in value.items()}
    if isinstance(value, list):
        return [_walk_item(i, v, path, changes) for i, v in enumerate(value)]
    if isinstance(value, str):
        if value in ALWAYS:
            return ALWAYS[value]
        if value.startswith(f"{RUNBOOKS}/"):
            page = value.removeprefix(RUNBOOKS)
            return Expression(f'"{{{{ .Values.monitoring.runbooks }}}}{page}"')
        # Names in certificates say the namespace.
        if value.endswith(_NAMES_OF_HOSTS) or f"{_NAMES_OF_HOSTS}.svc" in value:
            text = value.replace(_NAMES_OF_HOSTS, ".{{ .Release.Namespace }}", 1)
            return Expression(json.dumps(text))
    return value


def _walk_item(number: int, value: Any, path: str, changes: Mapping[str, Change]) -> Any:
    name = value.get("name", "") if isinstance(value, dict) else ""
    named = f"{path}.{name}"
    by_name = bool(name) and any(each.startswith(f"{named}.") for each in changes)
    return _walk(value, named if by_name else f"{path}.{number}", changes)
