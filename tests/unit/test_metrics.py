"""Counters: what may be counted, and that nothing is lost or made up."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest

from lexico_proto import metrics as m
from lexico_proto.errors import ERRORS, Busy, Cancelled, InternalError
from lexico_proto.v1 import (
    admin_pb2,
    dictionaries_pb2,
    offload_pb2,
    reload_pb2,
    versions_pb2,
)
from lexico_worker.page_encoder import Outcome

FAMILIES = [value for value in vars(m).values() if isinstance(value, m.Family)]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_families_are_what_prometheus_takes(family: m.Family) -> None:
    assert family.name.startswith("lexico_")
    assert family.name.endswith("_total") is not family.gauge
    assert family.help.endswith(".")
    assert len(list(product(*(label.values for label in family.labels)))) <= 400


def test_names_are_unique() -> None:
    assert len({family.name for family in FAMILIES}) == len(FAMILIES)


def test_methods_are_those_of_the_services() -> None:
    services = [
        service
        for file in (offload_pb2, reload_pb2, dictionaries_pb2, admin_pb2, versions_pb2)
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
    assert Cancelled.reason == "cancelled"


def test_an_exporter_is_one_adapter() -> None:
    """The text that Prometheus reads, from the snapshot alone."""
    metrics = m.Metrics()
    metrics.counter(m.CALLS, "get", "ok").add(2)
    metrics.counter(m.STORED_BYTES).add(7)
    lines = []
    for family, children in metrics.snapshot().items():
        lines += [f"# HELP {family.name} {family.help}", f"# TYPE {family.name} counter"]
        for values, number in children.items():
            pairs = zip((label.name for label in family.labels), values, strict=True)
            labels = ",".join(f'{name}="{value}"' for name, value in pairs)
            lines.append(f"{family.name}{{{labels}}} {number}" if labels else f"{family.name} 7")
    assert lines[2] == 'lexico_calls_total{method="get",outcome="ok"} 2'
    assert lines[5] == "lexico_stored_bytes_total 7"
