"""Spans without a collector: what is sampled, who is whose parent, and what is left behind."""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import pytest

from lexico_proto import tracing
from lexico_proto.errors import Busy, ConfigurationError
from lexico_proto.tracing import ENDPOINTS, OFF, TracingConfig

SAMPLED = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = SAMPLED[:-1] + "0"

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="the extra otel")


class Kept:
    """An exporter that keeps spans as they end."""

    def __init__(self) -> None:
        self.spans: list[Any] = []

    def on_start(self, span: Any, parent_context: Any = None) -> None: ...

    def _on_ending(self, span: Any) -> None: ...

    def on_end(self, span: Any) -> None:
        self.spans.append(span)

    def shutdown(self) -> None: ...

    def force_flush(self, timeout_millis: int = 0) -> bool:
        return True

    def named(self, name: str) -> Any:
        (found,) = [span for span in self.spans if span.name == name]
        return found


@pytest.fixture
def kept() -> Iterator[Kept]:
    provider, found = sdk.TracerProvider(shutdown_on_exit=False), Kept()
    provider.add_span_processor(found)
    tracing.use(provider)
    try:
        yield found
    finally:
        tracing.stop()


def test_nothing_happens_where_it_is_off() -> None:
    assert not tracing.is_on()
    with tracing.span("a", (("traceparent", SAMPLED),), pages=3) as span:
        span.set(more=1)
        assert span is OFF
        assert span.trace == () == tracing.current()


def test_blocks_are_parents(kept: Kept) -> None:
    with tracing.span("outer") as outer, tracing.span("inner", kind="server", pages=3):
        assert tracing.current() != outer.trace
    assert tracing.current() == ()
    inner = kept.named("inner")
    assert inner.parent.span_id == kept.named("outer").context.span_id
    assert inner.attributes == {"lexico.pages": 3}
    assert kept.named("outer").parent is None


def test_headers_are_parents(kept: Kept) -> None:
    headers = (("traceparent", SAMPLED), ("tracestate", "a=b"))
    with tracing.span("elsewhere"), tracing.span("child", headers) as child:
        assert child.trace[0][1][3:35] == SAMPLED[3:35]
        assert child.trace[1] == ("tracestate", "a=b")
    assert kept.named("child").parent.span_id == int(SAMPLED[36:52], 16)


def test_who_is_not_sampled_has_children_that_are_not(kept: Kept) -> None:
    with tracing.span("child", (("traceparent", UNSAMPLED),)) as child, tracing.span("below"):
        assert child.trace == (("traceparent", UNSAMPLED),) == tracing.current()
    assert kept.spans == []


@pytest.mark.parametrize(
    ("sample", "fewest", "most"), [(0.0, 0, 0), (0.1, 50, 160), (1.0, 1e3, 1e3)]
)
def test_a_part_of_the_traces_is_sampled(
    kept: Kept, sample: float, fewest: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "_sample", sample)
    random.seed(7)
    for _ in range(1000):
        with tracing.span("root") as root, tracing.span("child"):
            assert len(root.trace[0][1]) == 55
            assert tracing.is_sampled(root.trace) == tracing.is_sampled(tracing.current())
    names = [span.name for span in kept.spans]
    assert names.count("root") == names.count("child")
    assert fewest <= names.count("root") <= most


def test_an_applications_span_is_the_parent(kept: Kept) -> None:
    from opentelemetry import trace

    with trace.use_span(
        sdk.TracerProvider(shutdown_on_exit=False).get_tracer("app").start_span("app")
    ):
        application = trace.get_current_span().get_span_context()
        with tracing.span("ours"):
            assert trace.get_current_span().get_span_context() == application
    assert kept.named("ours").parent.span_id == application.span_id


def test_errors_are_named_by_their_reason(kept: Kept) -> None:
    with pytest.raises(Busy), tracing.span("failed"):
        raise Busy("a text with a secret")
    span = kept.named("failed")
    assert span.attributes["lexico.outcome"] == span.status.description == "busy"
    assert not span.events


async def test_a_generator_that_is_closed_elsewhere(kept: Kept, caplog: Any) -> None:
    async def numbers() -> AsyncGenerator[int, None]:
        with tracing.span("generator"):
            yield 1
            yield 2

    stream = numbers()
    await anext(stream)
    await asyncio.create_task(stream.aclose())  # in a context of its own
    assert [span.name for span in kept.spans] == ["generator"]
    assert caplog.text == ""


async def test_tasks_inherit_their_parent(kept: Kept) -> None:
    async def work() -> None:
        with tracing.span("task"):
            await asyncio.sleep(0)

    with tracing.span("request"):
        tasks = [asyncio.create_task(work()) for _ in range(3)]
        await asyncio.gather(*tasks)
    parent = kept.named("request").context.span_id
    assert [s.parent.span_id for s in kept.spans if s.name == "task"] == [parent] * 3


def test_other_threads_name_their_parent(kept: Kept) -> None:
    found: list[tracing.Trace] = []

    def work(parent: tracing.Trace) -> None:
        found.append(tracing.current())
        with tracing.span("thread", parent):
            pass

    with tracing.span("request") as request:
        thread = threading.Thread(target=work, args=(request.trace,))
        thread.start()
        thread.join()
    assert found == [()]
    assert kept.named("thread").parent.span_id == kept.named("request").context.span_id


def test_what_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracing, "_NEEDED", ("no_such_package.part",))
    with pytest.raises(ConfigurationError, match=r"no_such_package.*lexico-offload\[otel\]"):
        tracing.start(TracingConfig("http://127.0.0.1:1"), "test")
    assert tracing.check(TracingConfig())
    monkeypatch.setenv(ENDPOINTS[0], "http://127.0.0.1:1")  # perhaps for others
    assert not tracing.start(TracingConfig(), "test")
    assert "lexico-offload[otel]" in caplog.text
    assert not tracing.is_on()


@pytest.mark.parametrize("sample", [-0.1, 1.1, float("nan")])
def test_parts_that_are_none(sample: float) -> None:
    with pytest.raises(ConfigurationError, match="sample"):
        TracingConfig(sample=sample)


@pytest.mark.parametrize(
    ("config", "environment", "wanted"),
    [
        (TracingConfig(), {}, False),
        (TracingConfig("http://x:4317"), {}, True),
        *((TracingConfig(), {name: "http://x:4317"}, True) for name in ENDPOINTS),
        (TracingConfig("http://x:4317"), {"OTEL_SDK_DISABLED": "True"}, False),
        (TracingConfig(), {ENDPOINTS[0]: ""}, False),
    ],
)
def test_where_spans_go(config: TracingConfig, environment: dict[str, str], wanted: bool) -> None:
    assert config.wanted(environment) is wanted


def test_every_span_stands_in_the_documentation() -> None:
    root = Path(__file__).parents[2]
    documented = (root / "docs" / "operations.md").read_text()
    sources = [
        path.read_text()
        for folder in ("client", "services", "lexico_worker")
        for path in (root / folder).rglob("*.py")
    ]
    names = {name for text in sources for name in re.findall(r'span\(\s*"(lexico\.[a-z.]+)"', text)}
    assert len(names) >= 8
    assert not [name for name in names if f"`{name}`" not in documented]
