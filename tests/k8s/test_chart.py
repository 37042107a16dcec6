"""The Helm chart, by Helm itself, against what kustomize renders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
import yaml

from k8s.chart.generate import FOLDER, PRODUCTION, default_values, differences
from k8s.chart.guards import least_worker
from k8s.chart.template import MISSING, Conflict, Templates
from k8s.chart.values import COMPONENTS, TURNS_ON, unused, values_of
from k8s.checks.all_checks import problems
from k8s.checks.rendering import (
    NOT_WITH,
    STORES,
    Rendering,
    alone,
    base_with,
    overlay,
    rendered,
    with_all,
    without_digests,
)

helm = pytest.importorskip("helm_python", reason="Helm's package is for Linux on x86_64 alone")

OTHERS = tuple(name for name in COMPONENTS if name not in STORES)


@pytest.fixture(scope="module")
def chart() -> Iterator[Any]:
    with helm.Chart.load(str(FOLDER)) as chart:
        yield chart


def render(chart: Any, values: dict[str, Any]) -> Rendering:
    made = chart.render(values, name="lexico", namespace="lexico")
    return rendered("chart", "\n---\n".join(t for n, t in made.items() if n.endswith(".yaml")))


def comparable(rendering: Rendering) -> dict[str, Any]:
    """Objects by kind and name: without what only one of the two makes, and items of lists whose
    order means nothing in an order of their own.
    """
    found = {}
    for each in rendering.objects:
        if each["kind"] not in ("Namespace", "Secret"):
            found[f"{each['kind']}/{each['metadata']['name']}"] = _ordered(each)
    return found


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not k.startswith("checksum/")}
        return {
            k: _ordered(v) for k, v in kept.items() if not (k == "annotations" and not _ordered(v))
        }
    if isinstance(value, list):
        items = [_ordered(each) for each in value]
        named = all(isinstance(each, dict) and "name" in each for each in items)
        return sorted(items, key=lambda each: json.dumps(each, sort_keys=True)) if named else items
    return value


def test_the_chart_is_what_the_manifests_give() -> None:
    assert differences() == []


def test_each_place_of_a_value_is_there() -> None:
    everything = [each for name in COMPONENTS for each in without_digests(base_with(name)).objects]
    assert unused(iter(everything)) == set()


def test_helm_renders_the_base_as_kustomize_does(chart: Any) -> None:
    assert comparable(render(chart, {})) == comparable(without_digests(base_with()))


def test_helm_renders_production_as_kustomize_does(chart: Any) -> None:
    """By the file that the chart brings for it."""
    made = render(chart, yaml.safe_load((FOLDER / PRODUCTION).read_text()))
    assert comparable(made) == comparable(without_digests(overlay("production")))


def test_each_component_has_its_values() -> None:
    assert TURNS_ON.keys() == COMPONENTS.keys()


@pytest.mark.parametrize("name", COMPONENTS)
def test_helm_renders_a_component_as_kustomize_does(chart: Any, name: str) -> None:
    made = render(chart, values_of(name))
    assert comparable(made) == comparable(without_digests(alone(name)))


@pytest.mark.parametrize("store", STORES)
def test_helm_renders_all_of_them_as_kustomize_does(chart: Any, store: str) -> None:
    """Turned on too where it has no effect: TLS of a store that is not there."""
    made = render(chart, values_of(store, *OTHERS))
    assert NOT_WITH.keys() <= set(STORES)
    assert comparable(made) == comparable(without_digests(with_all(store)))


@pytest.mark.parametrize("values", [{}, {"tls": {"enabled": True}}, {"store": {"tls": True}}])
def test_the_notes_name_the_certificate_that_nodes_need(chart: Any, values: dict[str, Any]) -> None:
    made = chart.render(values, name="lexico", namespace="lexico")
    (notes,) = (text for name, text in made.items() if name.endswith("NOTES.txt"))
    asked = any('secretName: "lexico-node-tls"' in text for text in made.values())
    assert asked is bool(values)
    assert ("lexico-node-tls" in notes) is asked


def test_helm_finds_nothing_to_say() -> None:
    found = helm.lint(str(FOLDER))
    assert [each for each in found.get("messages", found) if "icon" not in str(each)] == []


def test_values_are_in_their_places(chart: Any) -> None:
    values = {
        "ingress": {"nodes": 3},
        "encoders": {"more": 7, "memory": "24Gi"},
        "store": {"maxmemory": "20gb", "memory": "27Gi"},
        "images": {"cpu": "registry.example/lexico@sha256:00"},
        "logLevel": "debug",
        "policy": "[default]\npage_ttl_s = 60\n",
        "monitoring": {"enabled": True, "runbooks": "https://wiki.example/lexico"},
    }
    made = render(chart, values)
    text = json.dumps(made.objects)
    assert "min_replicas = 3\\nmax_replicas = 10\\n" in text
    assert "ingresses: 3\\n" in text
    assert "maxmemory 20gb" in text
    assert "page_ttl_s = 60" in text
    assert "registry.example/lexico@sha256:00" in text
    assert "https://wiki.example/lexico/LexicoPartGone.md" in text
    assert "docs/runbooks" not in text
    objects = (*made.objects, *base_with().of_kind("Namespace"))
    assert [str(each) for each in problems(Rendering("chart", objects))] == []


@pytest.mark.parametrize(
    "values",
    [
        {"store": {"kind": "double"}},
        {"ingress": {"node": 3}},
        {"ingress": {"nodes": 0}},
        {"encoders": {"memory": "16"}},
        {"images": {"cpu": "lexico"}},
        {"secrets": {"tenants": ["a" * 64]}},
    ],
)
def test_values_that_are_none_are_refused(chart: Any, values: dict[str, Any]) -> None:
    with pytest.raises(helm.HelmError):
        chart.validate_schema(values)


BAD: dict[str, dict[str, Any]] = {
    "reload.minReplicas is 9 and reload.maxReplicas is 8: raise": {"reload": {"minReplicas": 9}},
    "store.maxmemory is 255mb: give at least 256mb": {"store": {"maxmemory": "255mb"}},
    "store.memory is 8Gi and store.maxmemory is 7gb: give the pod a third more than its pages, "
    "9558Mi or above": {"store": {"maxmemory": "7gb"}},
    "store.memory is 8191Mi and": {"store": {"memory": "8191Mi"}},
    "encoders.memory is 2Gi: give a worker 5472Mi or above": {"encoders": {"memory": "2Gi"}},
    "encoders.memory is 5471Mi": {"encoders": {"memory": "5471Mi"}},
    "secrets.tenants is empty": {"secrets": {"tenants": []}},
    "secrets.tenants names one tenant twice: a, b, a": {"secrets": {"tenants": ["a", "b", "a"]}},
    "secrets.tenants has smoke-test": {"secrets": {"tenants": ["smoke-test"]}},
    "policy is no TOML: ": {"policy": "[default\n"},
    "policy has tenant: there are the tables": {"policy": "[tenant.a]\npage_ttl_s = 1\n"},
    "policy: default has a value where a table": {"policy": "default = 3\n"},
    "policy: page_ttl is none of page_ttl_s": {"policy": "[tenants.a]\npage_ttl = 1\n"},
    "policy: page_ttl_s is 0: give a positive number": {"policy": "[default]\npage_ttl_s = 0\n"},
    "policy: page_ttl_s is 1 day: give": {"policy": '[tenants.a]\npage_ttl_s = "1 day"\n'},
}
"""What is said → the values that it is said of."""


@pytest.mark.parametrize("says", BAD)
def test_values_that_cannot_work_are_refused_with_what_to_do(chart: Any, says: str) -> None:
    with pytest.raises(helm.HelmError, match=re.escape(says)):
        render(chart, BAD[says])


@pytest.mark.parametrize(
    "values",
    [
        {"reload": {"minReplicas": 8}},
        {"store": {"maxmemory": "256mb", "memory": "342Mi"}},
        {"store": {"maxmemory": "7gb", "memory": "9558Mi"}},
        {"store": {"kind": "external", "maxmemory": "99gb"}},
        {"encoders": {"memory": "5472Mi"}},
        {"secrets": {"create": False, "tenants": []}},
        {"policy": ""},
        {"policy": '[tenants.a]\npage_ttl_s = 0.5\nmax_stored_bytes = "20 GiB"\n'},
        {"ingress": {"nodes": 1}, "encoders": {"more": 0}},
    ],
)
def test_their_neighbours_are_taken(chart: Any, values: dict[str, Any]) -> None:
    chart.validate_schema(values)
    made = render(chart, values)
    objects = (*made.objects, *base_with().of_kind("Namespace"))
    assert [str(each) for each in problems(Rendering("chart", objects))] == []


@pytest.mark.parametrize("kind", ["single", "sentinel", "cluster"])
def test_data_has_room_for_what_the_store_holds(chart: Any, kind: str) -> None:
    values = {"store": {"kind": kind, "maxmemory": "20gb", "memory": "27Gi"}}
    store = render(chart, values).find("StatefulSet", "lexico-store")
    assert store is not None
    spec = store["spec"]
    sizes = [
        *(v["emptyDir"] for v in spec["template"]["spec"]["volumes"] if v["name"] == "data"),
        *(c["spec"]["resources"]["requests"] for c in spec.get("volumeClaimTemplates", ())),
    ]
    assert sizes in ([{"sizeLimit": "27Gi"}], [{"storage": "27Gi"}])


@pytest.mark.parametrize(("nodes", "stay"), [(1, 0), (2, 1), (5, 4)])
def test_a_drain_takes_one_ingress_at_a_time(chart: Any, nodes: int, stay: int) -> None:
    made = render(chart, {"ingress": {"nodes": nodes}})
    budget = made.find("PodDisruptionBudget", "lexico-offload")
    assert budget is not None
    assert budget["spec"]["minAvailable"] == stay


@pytest.mark.parametrize(
    ("endpoint", "namespace", "port"),
    [
        ("http://otel-collector.monitoring:4317", "monitoring", 4317),
        ("https://tempo.tracing.svc.cluster.local:14317/", "tracing", 14317),
        ("http://collector2.spans", "spans", 4317),
        ("http://collector", "monitoring", 4317),
    ],
)
def test_spans_are_let_out_to_their_collector(
    chart: Any, endpoint: str, namespace: str, port: int
) -> None:
    made = render(chart, {"otlp": {"enabled": True, "endpoint": endpoint}})
    policy = made.find("NetworkPolicy", "lexico-otlp")
    assert policy is not None
    (rule,) = policy["spec"]["egress"]
    labels = {"kubernetes.io/metadata.name": namespace}
    assert rule["to"] == [{"namespaceSelector": {"matchLabels": labels}}]
    assert rule["ports"] == [{"protocol": "TCP", "port": port}]


def test_what_a_worker_needs_is_what_it_is_given() -> None:
    """Twice /dev/shm, dictionary sets and programs."""
    assert least_worker() == 2 * 1200 + 1024 + 2048


def test_defaults_fit_the_schema() -> None:
    schema = json.loads((FOLDER / "values.schema.json").read_text())
    jsonschema.validate(default_values(), schema)


def test_secrets_are_those_of_the_manifests(chart: Any) -> None:
    made = render(chart, {"secrets": {"tenants": ["team-a", "team-b"]}})
    data = {each["metadata"]["name"]: each["stringData"] for each in made.of_kind("Secret")}
    store = data["lexico-store"]
    assert f"user lexico on >{store['password']} " in store["users.acl"]
    assert store["operator-password"] in store["users.acl"]
    assert data["lexico-ray-state"]["password"] in data["lexico-ray-state"]["users.acl"]
    lines = dict(line.split(":") for line in data["lexico-tokens"]["tokens"].splitlines())
    assert list(lines) == ["team-a", "team-b", "smoke-test"]
    assert lines["smoke-test"] == data["lexico-smoke-test"]["token"]
    assert len(set(lines.values())) == 3
    assert not list(render(chart, {"secrets": {"create": False}}).of_kind("Secret"))


def test_components_that_change_the_same_place_are_refused() -> None:
    both = {"a": {"x": 2}, "b": {"x": 3}}
    with pytest.raises(Conflict):
        Templates({"a": ".Values.a", "b": ".Values.b"}, frozenset()).document({"x": 1}, both)
    made = Templates({"a": "A", "b": "B"}, frozenset({"a", "b"})).document({"x": 1}, both)
    assert made.splitlines() == [
        "{{- if A }}", "x: 2", "{{- else if B }}", "x: 3", "{{- else }}", "x: 1", "{{- end }}",
    ]  # fmt: skip
    alike = Templates({"a": "A", "b": "B"}, frozenset()).document(
        {"x": 1}, {"a": {"x": 2}, "b": {"x": 2}}
    )
    assert alike.splitlines()[:2] == ["{{- if or (A) (B) }}", "x: 2"]
    gone = Templates({"a": "A"}, frozenset()).document({"x": 1}, {"a": MISSING})
    assert gone.splitlines() == ["{{- if not (A) }}", "x: 1", "{{- end }}"]
