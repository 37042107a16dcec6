"""Dashboards and alerts against a real run under a real Prometheus: `make monitoring-check`.

A service with two tenants whose nodes offload, load and miss; Prometheus and Alertmanager of
Debian. The tests are in an order: those of a service that is well come first.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import torch

from k8s.monitoring.alerts import ALERTS
from k8s.monitoring.dashboards import DASHBOARDS
from k8s.monitoring.grafana import Dashboard, Panel, Query
from lexico_client import Client
from lexico_proto.errors import DictionaryMismatch
from tests.support.client_fixtures import small_dictionary, small_spec
from tests.support.foreign_metrics import FOREIGN
from tests.support.monitored_service import TENANTS, Monitored, monitored
from tests.support.prometheus import MONITORING, finite, lacking
from tests.support.promql import selectors
from tests.support.runbooks import Block, blocks
from tests.support.waiting import wait_until

CHOSEN: Final = {"$__rate_interval": "15s", "$namespace": ".*", "$pod": ".*", "$tenant": ".*"}
"""As Grafana fills in what is chosen at first."""
QUERIES: Final = [(d, p, q) for d in DASHBOARDS for p in d.panels for q in p.queries]
BLOCKS: Final = [block for block in blocks() if block.kind == "bash"]
BEGIN_LATER: Final = frozenset(
    {
        "lexico_encoder_retries_total",
        "lexico_page_failures_total",
        "lexico_sets_refused_total",
        "lexico_store_retries_total",
    }
)
"""What is counted once it occurs, which in a service that is well it does not."""

pytestmark = pytest.mark.skipif(
    not MONITORING, reason="a minute with Prometheus: make monitoring-check"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    if missing := lacking():
        pytest.skip(f"not installed: {', '.join(missing)}: make monitoring-check")
    with monitored(tmp_path_factory.mktemp("run")) as everything:
        wait_until(
            lambda: everything.traffic.rounds > 3 or everything.traffic.failure,
            "prompts of both tenants",
        )
        assert not everything.traffic.failure
        yield everything


def filled_in(text: str) -> str:
    for name, value in CHOSEN.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize(
    ("dashboard", "panel", "query"),
    QUERIES,
    ids=[f"{d.name}-{p.title}-{q.legend}" for d, p, q in QUERIES],
)
def test_each_query_of_each_panel_has_data(
    run: Monitored, dashboard: Dashboard, panel: Panel, query: Query
) -> None:
    expr = filled_in(query.expr)
    assert "$" not in expr
    ask = run.prometheus.of_late if panel.kind == "timeseries" else run.prometheus.now
    wait_until(lambda: finite(ask(expr)), f"numbers of {panel.title}: {expr}", lambda: ask(expr))
    assert not run.traffic.failure


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_each_variable_has_values(run: Monitored, dashboard: Dashboard) -> None:
    for variable in dashboard.variables:
        series, label = variable.query.removeprefix("label_values(")[:-1].rsplit(", ", 1)
        found = {labels.get(label) for labels, _ in run.prometheus.now(filled_in(series))}
        assert found - {None}, variable


def test_what_alerts_look_at_is_there(run: Monitored) -> None:
    """An alert on series that are never there would be silent for ever. Those of others need a
    cluster.
    """
    names = {selector.name for alert in ALERTS for selector in selectors(alert.expr)} - set(FOREIGN)
    absent = {name for name in names if not run.prometheus.now(f"count({name})")}
    assert absent <= BEGIN_LATER


def test_a_service_that_is_well_has_two_alerts(run: Monitored) -> None:
    """Its certificate is for two days, and its targets have labels of pods that nobody watches."""
    expected = {("LexicoCertificateEnding", "warning"), ("LexicoPodsUnseen", "warning")}
    wait_until(lambda: expected <= run.prometheus.firing(), "both", run.prometheus.firing)
    # How long calls take on a busy machine is not looked at.
    assert run.prometheus.firing() - {("LexicoMatchSlow", "warning")} == expected
    groups = run.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(ALERTS)
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.page)
def test_commands_of_runbooks(run: Monitored, block: Block) -> None:
    addresses = run.service.addresses
    environment = {
        **os.environ,
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
        "INGRESS": addresses["offload-metrics"],
        "RELOAD": addresses["reload-metrics"],
        "NODE": run.node,
        "PROMETHEUS": run.prometheus.url,
        "SERVER": run.service.reload,
        "CA": str(run.ca),
        "LEXICO_TOKEN": TENANTS["red"],
        "LEXICO_STORE": run.store_url,
        "SETTINGS": str(run.settings),
    }
    command = ["bash", "-eu", "-c", block.text]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    warned = (0, 1) if "lexico doctor" in block.text else (0,)
    assert done.returncode in warned, done.stdout + done.stderr
    assert done.stdout
    assert "AUTH" not in done.stdout + done.stderr  # what redis-cli says with exit code 0


def refused(client: Client) -> None:
    """Offloads with a set of another geometry."""
    other = small_dictionary(seed=1, layers=2)
    client.register_dictionary(other)
    spec = small_spec("lexico", dictionary=other.digest)
    with pytest.raises(DictionaryMismatch):
        client.offload(
            spec,
            list(range(spec.page_tokens)),
            lambda page, group: torch.ones(spec.group_shape(group)).half(),
        )


def test_the_first_refusal_of_a_process_is_told(run: Monitored) -> None:
    """Its series begins at 1, which is no increase."""
    with run.client(TENANTS["red"]) as client:
        refused(client)
    wait_until(lambda: "LexicoSetsRefused" in run.hook.names(), "an alert", run.prometheus.firing)
    (told,) = [a for a in run.hook.alerts if a["labels"]["alertname"] == "LexicoSetsRefused"]
    assert told["labels"]["reason"] == "dictionary-mismatch"
    assert told["annotations"]["summary"].endswith("refused a dictionary set: dictionary-mismatch")
    assert told["annotations"]["runbook_url"] == "docs/runbooks/LexicoSetsRefused.md"


def test_a_store_that_is_gone_is_told(run: Monitored) -> None:
    run.traffic.end()
    assert not run.traffic.failure
    run.store.process.kill()
    wait_until(lambda: "LexicoStoreUnreachable" in run.hook.names(), "an alert")
    (told,) = [a for a in run.hook.alerts if a["labels"]["alertname"] == "LexicoStoreUnreachable"]
    assert told["labels"]["severity"] == "critical"
    assert told["annotations"]["summary"] == "No reload server in lexico reaches the store"


def test_a_service_that_is_gone_is_told(run: Monitored) -> None:
    run.service.stop()
    expected = {"LexicoPartGone", "LexicoScrapeFailing"}
    wait_until(lambda: expected <= run.hook.names(), "alerts", lambda: run.hook.alerts)
    gone = [each for each in run.hook.alerts if each["labels"]["alertname"] == "LexicoPartGone"]
    parts = {each["labels"]["part"]: each["annotations"]["summary"] for each in gone}
    assert parts["ingress"] == "No ingress is left in lexico"
    assert parts["reload-server"] == "No reload-server is left in lexico"
