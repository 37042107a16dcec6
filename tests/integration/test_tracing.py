"""One trace over client, ingress, encoder, store and reload, at a real collector."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from lexico_client import AsyncClient, GrpcTransport
from lexico_codec.pieces import Piece
from lexico_proto import errors, tracing
from lexico_proto.tracing import TracingConfig
from lexico_proto.v1 import reload_pb2
from lexico_worker.page_encoder import PageDone, PageJob
from tests.support.client_fixtures import PATIENT
from tests.support.client_server import Behaviour, serving
from tests.support.otlp import Collector, attributes, collecting
from tests.support.services import Prompt, prompt, running_services, serialised
from tests.support.waiting import PATIENCE_S, until

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="the extra otel")


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    monkeypatch.setattr(tracing, "FLUSH_S", PATIENCE_S)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    with collecting() as found:
        assert tracing.start(TracingConfig(found.endpoint, 1.0), "test")
        try:
            yield found
        finally:
            tracing.stop()


def target(made: Prompt) -> Any:
    return lambda _: lambda _, group: torch.empty(made.spec.group_shape(group))


@asynccontextmanager
async def client(services: Any, folder: Path) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(
        reload=services.reload_address,
        offload=services.offload_address,
        dictionaries_dir=folder,
        timeouts=PATIENT,
    ) as made:
        yield made


async def test_a_put_and_a_get_are_one_trace(collector: Collector, tmp_path: Path) -> None:
    made = prompt()
    async with running_services() as services, client(services, tmp_path) as node:
        with tracing.span("request"):
            await node.offload(made.spec, made.token_ids, lambda p, g: made.pages[p][g])
            loaded = await node.load(made.spec, made.token_ids, target(made))
        assert loaded.pages == 2
    await asyncio.to_thread(tracing.stop)
    request = collector.one("request")
    assert not request.parent_span_id
    assert {span.trace_id for span in collector.spans} == {request.trace_id}
    found, pages = set(collector.names()), len(made.pages)
    assert found == {
        *("request", "lexico.client.offload", "lexico.client.load"),
        *("lexico.match", "lexico.put", "lexico.get"),
        *("lexico.place", "lexico.encoder", "lexico.encode"),
        *("lexico.store.match", "lexico.store.commit", "lexico.store.read"),
    }
    names = collector.names()
    assert names.count("lexico.put") == 2  # at either end
    assert [names.count(f"lexico.{each}") for each in ("encoder", "encode")] == [pages, pages]
    by_id = {span.span_id: span for span in collector.spans}
    encode = next(span for span in collector.spans if span.name == "lexico.encode")
    chain = [encode.name]
    while encode.parent_span_id:
        encode = by_id[encode.parent_span_id]
        chain.append(encode.name)
    assert chain == [
        *("lexico.encode", "lexico.encoder", "lexico.put", "lexico.put"),
        *("lexico.client.offload", "request"),
    ]
    assert attributes(collector.one("lexico.client.load"))["lexico.loaded"] == loaded.tokens
    assert collector.services == {"lexico-test"}
    told = " ".join(str(value) for span in collector.spans for value in attributes(span).values())
    assert not any(key.hex() in told for key in made.keys)


class Held:
    """Encoders that sit on every page."""

    def __init__(self) -> None:
        self.jobs: list[PageJob] = []

    async def running(self) -> int | None:
        return None

    async def place(self, page: list[Piece]) -> Any:
        return None

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.jobs.append(job)
        await asyncio.sleep(PATIENCE_S)
        raise AssertionError


async def test_an_upload_that_is_cancelled_is_exported(collector: Collector) -> None:
    held = Held()
    async with running_services(encoders=held) as services:
        transport = GrpcTransport(services.reload_address, services.offload_address)
        put = asyncio.create_task(transport.put(serialised(prompt().upload()), PATIENCE_S))
        await until(lambda: len(held.jobs) == 2, "both pages with the encoders")
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        await until(lambda: services.ingress.budget.used == 0, "the call has ended there")
        await transport.close()
    await asyncio.to_thread(tracing.stop)
    puts = [span for span in collector.spans if span.name == "lexico.put"]
    assert [attributes(span)["lexico.outcome"] for span in puts] == ["cancelled"] * 2
    assert collector.names().count("lexico.encoder") == 2
    assert {span.trace_id for span in collector.spans} == {puts[0].trace_id}
    assert {job.trace[0][1][3:35] for job in held.jobs} == {puts[0].trace_id.hex()}


async def test_a_stream_that_its_reader_leaves_is_exported(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    ended = asyncio.Event()

    async def endless(*_: Any) -> AsyncGenerator[reload_pb2.GetResponse, None]:
        try:
            while True:
                yield reload_pb2.GetResponse(miss=reload_pb2.Miss(page=0))
        finally:
            ended.set()

    async with serving(Behaviour(get=endless)) as address:
        transport = GrpcTransport(address)
        async with aclosing(transport.get(reload_pb2.GetRequest(), PATIENCE_S)) as messages:
            await anext(messages)
            assert tracing.current() == ()  # a stream is no parent of what its reader does
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        await transport.close()
    await asyncio.to_thread(tracing.stop)
    assert attributes(collector.one("lexico.get"))["lexico.outcome"] == "cancelled"
    assert "context" not in caplog.text.lower()


async def test_errors_are_told_by_their_reason_alone(collector: Collector) -> None:
    made = prompt()
    async with running_services() as services:
        transport = GrpcTransport(services.reload_address, services.offload_address)
        with pytest.raises(errors.StreamTruncated):
            await transport.put(serialised(made.upload()[:-1]), PATIENCE_S)
        await transport.close()
    await asyncio.to_thread(tracing.stop)
    puts = [span for span in collector.spans if span.name == "lexico.put"]
    assert [attributes(span)["lexico.outcome"] for span in puts] == ["stream-truncated"] * 2
    assert [span.status.message for span in puts] == ["stream-truncated"] * 2
    assert not any(span.events for span in collector.spans)
