"""Metrics as Prometheus reads them, after calls over real sockets; and the port that shows them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from lexico_client import AsyncClient
from lexico_client import metrics as client_metrics
from lexico_proto import metrics as m
from lexico_proto.errors import ConfigurationError, StoreUnavailable
from lexico_services.telemetry import config as telemetry_config
from lexico_services.telemetry.config import INGRESS, SERVICE, MetricsConfig, TelemetryConfig
from lexico_services.telemetry.exposition import READERS, Exposition
from lexico_services.telemetry.gauges import StoreNumbers, watch_ingress, watch_parts
from lexico_store import StoreUsage
from tests.support.client_fixtures import PATIENT
from tests.support.scrape import sample, samples_of, text_of
from tests.support.services import prompt, running_services
from tests.support.waiting import PATIENCE_S, until

RED, BLUE = "token-of-tenant-red", "token-of-tenant-blue"


@contextmanager
def shown(metrics: m.Metrics, host: str = "127.0.0.1", port: int = 0) -> Iterator[str]:
    exposition = Exposition(metrics, host, port)
    try:
        taken = exposition.port(PATIENCE_S)
        assert taken
        yield f"[{host}]:{taken}" if ":" in host else f"{host}:{taken}"
    finally:
        exposition.close()


async def test_what_calls_leave_behind(tmp_path: Path) -> None:
    """Two tenants, an offload, loads that hit and miss: every number that follows from them."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"red:{RED}\nblue:{BLUE}\n")
    made, other = prompt(), prompt(seed=1)
    raw = 2 * made.spec.page_bytes
    async with running_services(token_file=tokens) as services:
        watch_ingress(services.metrics, services.ingress)
        for tenant, token in (("red", RED), ("blue", BLUE)):
            async with AsyncClient(
                reload=services.reload_address,
                offload=services.offload_address,
                token=token,
                dictionaries_dir=tmp_path,
                timeouts=PATIENT,
            ) as node:
                if tenant == "red":
                    report = await node.offload(
                        made.spec, made.token_ids, lambda p, g: made.pages[p][g]
                    )
                for each in (made, other):
                    await node.load(
                        each.spec,
                        each.token_ids,
                        lambda _: lambda _, group: torch.empty(made.spec.group_shape(group)),
                    )
        sent = services.metrics.counter(m.SENT_BYTES)
        await until(lambda: sent.number == report.bytes_stored, "what was sent is counted")
        with shown(services.metrics) as address:
            found = samples_of(text_of(address))
    asked = {"codec": "raw"}
    for tenant, hits in (("red", 10), ("blue", 0)):
        assert sample(found, "lexico_match_tokens_total", tenant=tenant, **asked) == 20
        assert sample(found, "lexico_hit_tokens_total", tenant=tenant, **asked) == hits
    matches = {"codec": "raw", "tenant": "red"}
    assert sample(found, "lexico_matches_total", outcome="all", **matches) == 1
    assert sample(found, "lexico_matches_total", outcome="none", **matches) == 1
    stored = report.bytes_stored
    for direction, size in (("received", raw), ("stored", stored), ("sent", stored)):
        assert sample(found, "lexico_tenant_bytes_total", tenant="red", direction=direction) == size
    assert sample(found, "lexico_coded_bytes_total", codec="raw", form="raw") == raw
    assert sample(found, "lexico_coded_bytes_total", codec="raw", form="stored") == stored
    assert sample(found, "lexico_encode_seconds_count", codec="raw") == 2
    for stage in m.STAGES:
        assert sample(found, "lexico_page_seconds_count", stage=stage) == 2
    assert sample(found, "lexico_call_seconds_count", method="put") == 1
    assert sample(found, "lexico_leases_total", outcome="taken") == 2
    assert sample(found, "lexico_inflight_bytes") == 0
    assert sample(found, "lexico_inflight_limit_bytes") == services.ingress.budget.limit
    assert sample(found, "lexico_streams") == 0
    assert sample(found, "lexico_store_up") == 1
    assert sample(found, "process_start_time_seconds") > 0
    secrets = (RED, BLUE, *(key.hex() for key in made.keys))
    assert not [label for _, labels in found for _, label in labels if label in secrets]


def test_promtool_has_nothing_to_say() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    metrics = m.Metrics()
    for family in m.FAMILIES:
        values = [sorted(label.values or {"a"})[0] for label in family.labels]
        if family.buckets:
            metrics.histogram(family, *values).observe(0.2)
        else:
            metrics.counter(family, *values)
    with shown(metrics) as address:
        text = text_of(address)
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, text=True, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {name for name, _ in samples_of(text)} >= {
        family.name for family in m.FAMILIES if not family.buckets
    }


def test_only_the_page_is_there() -> None:
    with shown(m.Metrics()) as address:
        for path in ("/", "/metrics/x", "/favicon.ico"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(f"http://{address}{path}")
            assert caught.value.code == 404
            caught.value.close()
        request = urllib.request.Request(f"http://{address}/metrics", data=b"x", method="POST")
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        caught.value.close()


def test_an_ipv6_address() -> None:
    with shown(m.Metrics(), "::1") as address:
        assert "process_" in text_of(address)


def test_readers_that_say_nothing_leave_room_when_they_are_gone() -> None:
    with shown(m.Metrics()) as address:
        host, _, port = address.rpartition(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(READERS)]
        with socket.create_connection((host, int(port)), PATIENCE_S) as one_more:
            assert one_more.recv(1) == b""  # hung up on
        for each in silent:
            each.close()
        while True:
            try:
                assert "process_" in text_of(address)
                break
            except (urllib.error.URLError, ConnectionError):
                continue  # their threads are on their way out


async def test_a_port_that_is_taken_is_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        exposition = Exposition(m.Metrics(), "127.0.0.1", port)
        await until(lambda: "metrics wait for their port" in caplog.text, "it says so")
        assert exposition.port(0) is None
    try:
        assert exposition.port(PATIENCE_S) == port
    finally:
        exposition.close()
        exposition.close()


def test_addresses_of_the_parts() -> None:
    assert MetricsConfig().at() is None
    assert MetricsConfig("[::1]:9464").at(SERVICE) == ("::1", 9466)
    assert MetricsConfig("127.0.0.1:0").at(SERVICE) == ("127.0.0.1", 0)
    for bad in ("9464", ":9464", "host:", "host:x", "host:65535", "host:-1", "host:٣"):
        with pytest.raises(ConfigurationError, match="HOST:PORT"):
            MetricsConfig(bad)
    with pytest.raises(ConfigurationError, match="max_tenants"):
        MetricsConfig(max_tenants=-1)


def test_what_is_lacking_is_said_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        config = TelemetryConfig(MetricsConfig(f"127.0.0.1:{holder.getsockname()[1]}"))
        config.check()
        with pytest.raises(ConfigurationError, match="is taken"):
            config.check(INGRESS)
    config.check(INGRESS)
    monkeypatch.setattr(telemetry_config, "_NEEDED", "no_such_package")
    with pytest.raises(ConfigurationError, match=r"lexico-offload\[reload\]"):
        config.check()
    TelemetryConfig().check(INGRESS)


def test_the_store_is_asked_now_and_then() -> None:
    metrics, now, asked = m.Metrics(), [0.0], [0]
    answers: list[StoreUsage | Exception | None] = [
        StoreUsage(5, 9, evictions=3, expiries=2, connections=1),
        StoreUnavailable("away"),
        StoreUsage(1, 9, evictions=1),
        None,
    ]

    def ask() -> StoreUsage | None:
        asked[0] += 1
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    numbers = StoreNumbers(metrics, ask, lambda: now[0])
    seen = []
    for now[0] in (0.0, 1.0, 6.0, 12.0, 18.0):
        numbers.refresh()
        snapshot = metrics.snapshot()
        families = (m.STORE_UP, m.STORE_BYTES, m.STORE_EVICTIONS)
        seen.append([snapshot[family][()] for family in families])
    assert asked[0] == 4
    assert seen == [[1, 5, 3], [1, 5, 3], [0, 5, 3], [1, 1, 1], [1, 1, 1]]


def test_parts_are_looked_at() -> None:
    metrics, up = m.Metrics(), {"ray": True, "store": True}
    watch_parts(metrics, {name: (lambda name=name: up[name]) for name in up})  # type: ignore[misc]
    up["store"] = False
    assert metrics.snapshot()[m.PART_UP] == {("ray",): 1, ("store",): 0}


def test_a_node_shows_its_counters_beside_its_own() -> None:
    from prometheus_client import CollectorRegistry, Counter, generate_latest

    registry, metrics = CollectorRegistry(), m.Metrics()
    Counter("own", "Of the application.", registry=registry)
    client_metrics.register(registry, metrics)
    metrics.counter(m.CLIENT_MISSES, "absent").add()
    text = generate_latest(registry).decode()
    assert "own_total 0.0" in text
    assert 'lexico_client_misses_total{reason="absent"} 1.0' in text
