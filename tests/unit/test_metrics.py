"""Counters: what may be counted, and that nothing is lost or made up."""

from __future__ import annotations

import asyncio
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest

from lexico_codec.codecs import CODECS
from lexico_proto import metrics as m
from lexico_proto.errors import ERRORS, Busy, Cancelled, InternalError
from lexico_proto.v1 import (
    admin_pb2,
    dictionaries_pb2,
    offload_pb2,
    operations_pb2,
    reload_pb2,
    versions_pb2,
)
from lexico_worker.page_encoder import Outcome
from tests.support import metrics_page

PROCESSES = {
    "ingress": (*m.OF_SERVERS, *m.OF_INGRESS, *m.OF_ENCODERS),
    "reload server": (*m.OF_SERVERS, *m.OF_RELOAD),
    "service": m.OF_SERVICE,
    "node": m.OF_CLIENTS,
    "engine": m.OF_ENGINES,
}
"""What each process shows."""
MOST_SERIES = 5000
"""Of a process, at the worst: every tenant, codec and error there is."""


def most_series(family: m.Family) -> int:
    combinations = math.prod(label.most for label in family.labels)
    return combinations * (len(family.buckets) + 3 if family.buckets else 1)


@pytest.mark.parametrize("family", m.FAMILIES, ids=lambda family: family.name)
def test_families_are_what_prometheus_takes(family: m.Family) -> None:
    assert family.name.startswith("lexico_")
    assert family.name.endswith("_total") is (family.kind == "counter")
    assert not (family.gauge and family.buckets)
    assert list(family.buckets) == sorted(set(family.buckets))
    assert family.help.endswith(".")
    assert "|" not in family.help  # it stands in a table


@pytest.mark.parametrize("process", PROCESSES)
def test_the_series_of_a_process_are_bounded(process: str) -> None:
    unbounded = {m.BUILD_INFO}  # one series: a process has one release
    assert sum(most_series(each) for each in PROCESSES[process] if each not in unbounded) <= (
        MOST_SERIES
    )


def test_every_family_belongs_to_a_process() -> None:
    assert {each for families in PROCESSES.values() for each in families} == set(m.FAMILIES)


def test_names_are_unique() -> None:
    assert len(m.BY_NAME) == len(m.FAMILIES)


def test_codecs_are_those_of_the_package() -> None:
    assert set(m.CODECS) == {*CODECS, m.UNKNOWN}
    assert m.codec_label("raw") == "raw"
    assert m.codec_label("of-callers-making") == m.UNKNOWN


def test_the_page_of_metrics_is_written_from_the_code() -> None:
    assert metrics_page.PAGE.read_text() == metrics_page.page(), (
        "python -m tests.support.metrics_page"
    )


def test_tenants_beyond_the_bound_share_a_series() -> None:
    metrics = m.Metrics(max_open=2)
    for number in range(1000):
        metrics.counter(m.HIT_TOKENS, f"tenant-{number}", "raw").add(3)
        metrics.counter(m.MATCH_TOKENS, f"tenant-{number}", "raw").add(5)
    assert metrics.snapshot() == {
        m.HIT_TOKENS: {
            ("tenant-0", "raw"): 3,
            ("tenant-1", "raw"): 3,
            (m.OTHER, "raw"): 998 * 3,
        },
        m.MATCH_TOKENS: {
            ("tenant-0", "raw"): 5,
            ("tenant-1", "raw"): 5,
            (m.OTHER, "raw"): 998 * 5,
        },
    }


def test_observations_are_counted_by_bucket() -> None:
    metrics = m.Metrics()
    seconds = metrics.histogram(m.CALL_SECONDS, "get")
    assert metrics.histogram(m.CALL_SECONDS, "get") is seconds
    for value in (0.0, m.SECONDS[0], m.SECONDS[0] * 1.01, 1e9):
        seconds.observe(value)
    found = metrics.distributions()[m.CALL_SECONDS]["get",]
    assert found.counts == (2, 1, *[0] * (len(m.SECONDS) - 2), 1)
    assert found.total == pytest.approx(1e9)
    with pytest.raises(InternalError, match="no histogram"):
        metrics.histogram(m.CALLS, "get", "ok")
    with pytest.raises(InternalError, match="no counter"):
        metrics.counter(m.CALL_SECONDS, "get")


def test_watched_gauges_are_looked_at_when_they_are_read() -> None:
    metrics, held = m.Metrics(), [3]
    metrics.watch(m.INFLIGHT_BYTES, lambda: held[0])
    assert metrics.snapshot() == {m.INFLIGHT_BYTES: {(): 3}}
    held[0] = 5
    assert metrics.snapshot() == {m.INFLIGHT_BYTES: {(): 5}}
    with pytest.raises(InternalError, match="no gauge"):
        metrics.watch(m.SENT_BYTES, lambda: 0)


def test_what_an_encoder_counts_is_added_elsewhere_once() -> None:
    here, there = m.Metrics(), m.Metrics()
    families = {family.name: family for family in m.OF_ENCODERS}
    taken, errors = here.counter(m.LEASES, "taken"), here.histogram(m.RELATIVE_ERROR, "lexico")
    here.counter(m.SENT_BYTES).add(9)  # of no encoder
    for number in range(1, 4):
        taken.add(2)
        errors.observe(0.15)
        changes = pickle.loads(pickle.dumps(here.take_changes(m.OF_ENCODERS)))  # noqa: S301 - Ray
        assert len(changes) == 2
        there.add_changes(changes, families)
        assert there.snapshot() == {m.LEASES: {("taken",): 2 * number}}
        assert sum(there.distributions()[m.RELATIVE_ERROR]["lexico",].counts) == number
    assert here.take_changes(m.OF_ENCODERS) == ()
    there.add_changes((("lexico_of_tomorrow_total", (), 1),), families)
    assert set(there.snapshot()) == {m.LEASES}


def test_nothing_is_counted_where_nobody_wants_it() -> None:
    metrics = m.Metrics()
    metrics.configure(max_open=5, count=False)
    metrics.counter(m.SENT_BYTES).add(3)
    metrics.gauge(m.CERTIFICATE_END).set(3)
    metrics.histogram(m.CALL_SECONDS, "get").observe(1.0)
    metrics.watch(m.INFLIGHT_BYTES, lambda: 3)
    assert metrics.snapshot() == {} == metrics.distributions()


def test_methods_are_those_of_the_services() -> None:
    services = [
        service
        for file in (
            offload_pb2,
            reload_pb2,
            dictionaries_pb2,
            admin_pb2,
            versions_pb2,
            operations_pb2,
        )
        for service in file.DESCRIPTOR.services_by_name.values()
    ]
    methods = [name.lower() for service in services for name in service.methods_by_name]
    assert sorted(m.METHODS) == sorted(methods)


def test_every_outcome_of_an_encoder_can_be_counted() -> None:
    assert {outcome.value for outcome in Outcome} < set(m.PAGE_OUTCOMES)


def test_a_counter_is_bound_once() -> None:
    metrics = m.Metrics()
    bound = metrics.counter(m.CALLS, "put", "busy")
    assert metrics.counter(m.CALLS, "put", "busy") is bound
    bound.add()
    bound.add(0)
    bound.add(41)
    metrics.counter(m.SENT_BYTES)
    assert metrics.snapshot() == {m.CALLS: {("put", "busy"): 42}, m.SENT_BYTES: {(): 0}}


@pytest.mark.parametrize("values", [(), ("put",), ("put", "why"), ("Put", "ok"), ("ok", "put")])
def test_label_values_are_from_fixed_sets(values: tuple[str, ...]) -> None:
    metrics = m.Metrics()
    with pytest.raises(InternalError, match="lexico_calls_total"):
        metrics.counter(m.CALLS, *values)
    assert metrics.snapshot() == {}


def test_counters_do_not_go_back() -> None:
    counter = m.Metrics().counter(m.SENT_BYTES)
    with pytest.raises(InternalError):
        counter.add(-1)
    assert counter.number == 0


def test_a_gauge_is_set() -> None:
    metrics = m.Metrics()
    gauge = metrics.gauge(m.CERTIFICATE_END)
    gauge.set(7)
    gauge.set(3)
    assert metrics.gauge(m.CERTIFICATE_END) is gauge
    assert metrics.snapshot() == {m.CERTIFICATE_END: {(): 3}}
    with pytest.raises(InternalError, match="no gauge"):
        metrics.gauge(m.SENT_BYTES)


def test_threads_lose_nothing() -> None:
    metrics = m.Metrics()

    def count(_: int) -> None:
        for _ in range(2003):
            metrics.counter(m.SENT_BYTES).add(3)

    with ThreadPoolExecutor(7) as threads:
        list(threads.map(count, range(7)))
    assert metrics.snapshot() == {m.SENT_BYTES: {(): 7 * 2003 * 3}}


class Defect(Busy):
    reason = "not-in-the-tree"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Busy("full"), "busy"),
        (Defect("of no known reason"), "internal"),
        (ValueError("x"), "internal"),
        (asyncio.CancelledError(), "cancelled"),
        (GeneratorExit(), "cancelled"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_call_is_counted_by_how_it_ends(error: BaseException, reason: str) -> None:
    assert reason in ERRORS
    metrics = m.Metrics()
    calls = m.Calls(metrics, m.CLIENT_CALLS, "get")
    with calls.counted():
        pass
    with pytest.raises(type(error)), calls.counted():
        raise error
    assert metrics.snapshot()[m.CLIENT_CALLS] == {("get", "ok"): 1, ("get", reason): 1}
    assert sum(metrics.distributions()[m.CLIENT_CALL_SECONDS]["get",].counts) == 2
    assert Cancelled.reason == "cancelled"


def test_prometheus_reads_every_kind() -> None:
    client = pytest.importorskip("prometheus_client")
    from lexico_proto.prometheus import registry_of

    metrics = m.Metrics()
    metrics.counter(m.CALLS, "get", "ok").add(2)
    metrics.gauge(m.CERTIFICATE_END).set(7)
    metrics.counter(m.HIT_TOKENS, 'a "tenant"\\\n', "raw").add(1)
    metrics.histogram(m.CALL_SECONDS, "get").observe(0.3)
    lines = client.generate_latest(registry_of(metrics)).decode().splitlines()
    assert 'lexico_calls_total{method="get",outcome="ok"} 2.0' in lines
    assert "lexico_certificate_end_timestamp_seconds 7.0" in lines
    assert 'lexico_hit_tokens_total{codec="raw",tenant="a \\"tenant\\"\\\\\\n"} 1.0' in lines
    assert 'lexico_call_seconds_bucket{le="0.25",method="get"} 0.0' in lines
    assert 'lexico_call_seconds_bucket{le="0.5",method="get"} 1.0' in lines
    assert 'lexico_call_seconds_bucket{le="+Inf",method="get"} 1.0' in lines
    assert 'lexico_call_seconds_sum{method="get"} 0.3' in lines
    assert f"# HELP lexico_calls_total {m.CALLS.help}" in lines
    assert not [line for line in lines if "_created" in line]
