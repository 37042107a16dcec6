"""Alerts and dashboards against what is counted: no library's program is needed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from k8s.monitoring import files
from k8s.monitoring.__main__ import main
from k8s.monitoring.alerts import ALERTS, NAMES
from k8s.monitoring.alerts.alert import RUNBOOKS, Alert
from k8s.monitoring.alerts.pods import HEAD, SERVERS
from k8s.monitoring.dashboards import DASHBOARDS
from k8s.monitoring.files import FOLDER, differences
from k8s.monitoring.grafana import COLUMNS, Dashboard
from lexico_proto import metrics as m
from tests.monitoring.rule_cases import CASES, Case
from tests.support.foreign_metrics import FOREIGN, Labels, pods_made
from tests.support.promql import Matcher, Selector, grouped_by, selectors

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / RUNBOOKS
OF_PROCESSES: Final = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}
GIVEN: Final = {"namespace", "pod", "instance", "job", "le"}
"""Labels that Prometheus adds, or histograms have."""

EXPRESSIONS: Final = [
    *((alert.name, alert.expr) for alert in ALERTS),
    *((f"{d.name}: {p.title}", q.expr) for d in DASHBOARDS for p in d.panels for q in p.queries),
]


def family_of(name: str) -> m.Family | None:
    if name in m.BY_NAME:
        found = m.BY_NAME[name]
        return None if found.buckets else found  # a histogram has no series of its own name
    found_histogram = m.BY_NAME.get(re.sub(r"_(bucket|count|sum)$", "", name))
    return found_histogram if found_histogram is not None and found_histogram.buckets else None


def labels_of(name: str) -> Labels | None:
    """What it is told apart by; None where nobody counts it."""
    family = family_of(name)
    if family is not None:
        return {label.name: label.values for label in family.labels}
    return FOREIGN.get(name)


def key_of(case: Case) -> tuple[str, str]:
    return case.alert, case.severity


def faults_of(selector: Selector) -> Iterator[str]:
    """What of it nothing is counted under."""
    if selector.name in OF_PROCESSES:
        return
    labels = labels_of(selector.name)
    if labels is None:
        yield f"{selector.name} is not counted"
        return
    for matcher in selector.matchers:
        if matcher.label in labels:
            yield from (f"{selector.text}: {value}" for value in strange(matcher, labels))
        elif matcher.label not in GIVEN:
            yield f"{selector.text} has no label {matcher.label}"


def strange(matcher: Matcher, labels: Labels) -> Iterator[str]:
    """Values that its label never has."""
    values = labels[matcher.label]
    if values is not None and "$" not in matcher.value:
        regular = matcher.kind in ("=~", "!~")
        yield from set(matcher.value.split("|") if regular else [matcher.value]) - values


@pytest.mark.parametrize(("where", "expr"), EXPRESSIONS, ids=[where for where, _ in EXPRESSIONS])
def test_what_is_asked_for_is_counted(where: str, expr: str) -> None:
    found = selectors(expr)
    assert [fault for selector in found for fault in faults_of(selector)] == []
    known = {label for selector in found for label in labels_of(selector.name) or ()}
    assert grouped_by(expr) <= known | GIVEN


@pytest.mark.parametrize(
    "expr",
    [
        "rate(lexico_call_total[5m])",
        "lexico_page_seconds",
        'lexico_calls_total{tenant="a"}',
        'lexico_calls_total{outcome=~"busy|bussy"}',
        'lexico_leases_total{outcome="stolen"}',
        'kube_statefulset_replicas{statefulset="lexico-stores"}',
        'kube_pod_status_ready{condition="yes"}',
        "kube_statefulset_ready",
        'certmanager_certificate_expiration_timestamp_seconds{name="lexico-page-store"}',
    ],
)
def test_what_is_not_counted_is_found(expr: str) -> None:
    assert [fault for selector in selectors(expr) for fault in faults_of(selector)]


@pytest.mark.parametrize(
    ("pattern", "components"),
    [(HEAD, {"ray-head"}), (SERVERS, {"ingress", "reload"})],
    ids=["head", "servers"],
)
def test_names_of_pods_are_those_that_are_made(pattern: str, components: set[str]) -> None:
    made = pods_made()
    assert {"encoder", "ingress", "ray-head", "ray-state", "reload", "store"} <= made.keys()
    found = {component for component, name in made.items() if re.fullmatch(pattern, name)}
    assert found == components


def test_everything_that_is_counted_is_on_a_dashboard() -> None:
    seen = {
        family_of(selector.name)
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
        for selector in selectors(query.expr)
    }
    # Of `lexico serve` alone, which ends when a part is lost.
    assert {family.name for family in set(m.FAMILIES) - seen} == {m.PART_UP.name}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: f"{alert.name} {alert.severity}")
def test_an_alert_says_what_it_has_labels_for(alert: Alert) -> None:
    used = set(re.findall(r"\$labels\.(\w+)", alert.summary + alert.description))
    key = alert.name, alert.severity
    fired = [case.fires for case in CASES if case.fires and key_of(case) == key]
    assert all(used <= set(labels) for each in fired for labels in each)
    assert alert.summary[-1] not in ".!"
    assert alert.description.endswith(".")


def test_each_alert_has_a_runbook_and_each_runbook_an_alert() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(NAMES)
    for alert in ALERTS:
        url = alert.rule()["annotations"]["runbook_url"]  # type: ignore[index]
        assert (ROOT / url).is_file()


def test_files_are_what_the_sources_give() -> None:
    assert differences() == [], "make k8s-chart"


def test_files_that_are_not_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files, "DASHBOARDS", DASHBOARDS[1:])
    assert main(["--check"]) == 1
    assert "components/monitoring/dashboards/fleet.json is not what" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["rules", "prometheusrule"])
def test_rules_with_runbooks_elsewhere(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--show", form, "--runbooks", "https://wiki.example"]) == 0
    made = yaml.safe_load(capsys.readouterr().out)
    groups = made["groups"] if form == "rules" else made["spec"]["groups"]
    urls = [rule["annotations"]["runbook_url"] for group in groups for rule in group["rules"]]
    assert urls == [f"https://wiki.example/{alert.name}.md" for alert in ALERTS]


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_a_dashboard_is_whole(dashboard: Dashboard) -> None:
    made = json.loads((FOLDER / f"{dashboard.name}.json").read_text())
    panels = made["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] != "row":
            assert panel["description"].endswith(".")
            assert panel["fieldConfig"]["defaults"]["unit"]
            assert panel["targets"]
            assert len(panel["targets"]) <= 26
    given = {variable["name"] for variable in made["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(made)))
    assert used == given


def test_each_dashboard_has_names_of_its_own() -> None:
    made: list[dict[str, Any]] = [dashboard.json() for dashboard in DASHBOARDS]
    for key in ("uid", "title"):
        assert len({each[key] for each in made}) == len(made)
    for dashboard in DASHBOARDS:
        titles = [panel.title for panel in dashboard.panels]
        assert len(set(titles)) == len(titles)
