"""Interceptors on both sides, over real sockets: their order, and calls that end as without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import pytest

from lexico_client import Endpoint, GrpcTransport
from lexico_codec.pieces import Piece
from lexico_proto import errors
from lexico_proto.metrics import CLIENT_CALLS, Metrics
from lexico_proto.v1 import dictionaries_pb2, offload_pb2, reload_pb2
from lexico_worker.page_encoder import Outcome, PageDone, PageJob
from tests.support.client_server import Behaviour, serving
from tests.support.client_transport_contract import TransportContract
from tests.support.interceptors import ServerNotes, client_interceptors
from tests.support.services import Services, prompt, running_services, serialised
from tests.support.waiting import PATIENCE_S, until

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class TestInterceptedTransport(TransportContract):
    """All that a transport promises holds with interceptors."""

    @pytest.fixture
    async def transport(self) -> AsyncIterator[GrpcTransport]:
        async with serving(Behaviour()) as address:
            yield GrpcTransport(address, address, interceptors=client_interceptors("c", []))


@asynccontextmanager
async def intercepted(
    notes: list[str], *metadata: tuple[str, str], **options: Any
) -> AsyncIterator[tuple[Services, GrpcTransport, Metrics]]:
    """Services and a transport with two interceptors each."""
    metrics = Metrics()
    servers = [ServerNotes("s1", notes), ServerNotes("s2", notes)]
    async with running_services(interceptors=servers, **options) as services:
        clients = [
            *client_interceptors("c1", notes, *metadata),
            *client_interceptors("c2", notes),
        ]
        there, back = services.offload_address, services.reload_address
        transport = GrpcTransport(Endpoint(back), there, interceptors=clients, metrics=metrics)
        try:
            yield services, transport, metrics
        finally:
            await transport.close()


async def test_the_first_is_the_outermost_in_every_kind_of_call() -> None:
    notes: list[str] = []
    made = prompt()
    async with intercepted(notes) as (_, transport, _):
        await transport.put(serialised(made.upload()), PATIENCE_S)
        match = reload_pb2.MatchRequest(page_keys=made.keys)
        assert (await transport.match(match, PATIENCE_S)).leading == 2
        get = reload_pb2.GetRequest(page_keys=made.keys, groups=made.spec.groups)
        assert len([m async for m in transport.get(get, PATIENCE_S)]) == 2 * made.spec.groups
    expected = [
        f"{who} {call}" for call in ("Put", "Match", "Get") for who in ("c1", "c2", "s1", "s2")
    ]
    assert notes == expected


async def test_interceptors_that_are_none() -> None:
    with pytest.raises(errors.ConfigurationError, match="interceptor"):
        GrpcTransport("localhost:1", interceptors=[object()])  # type: ignore[list-item]


async def test_errors_keep_their_class() -> None:
    made = prompt()
    async with intercepted([]) as (services, transport, metrics):
        with pytest.raises(errors.StreamTruncated):
            await transport.put(serialised(made.upload()[:-1]), PATIENCE_S)
        with pytest.raises(errors.InvalidInput, match="begins with its header"):
            await transport.put(serialised(made.body(size=7)), PATIENCE_S)
        with pytest.raises(errors.InvalidInput):
            await transport.match(reload_pb2.MatchRequest(page_keys=[b"short"]), PATIENCE_S)
        fetched = transport.fetch(dictionaries_pb2.FetchRequest(digest=bytes(32)), PATIENCE_S)
        with pytest.raises(errors.UnknownDictionary):
            await anext(fetched)
        assert services.ingress.budget.used == 0
    assert metrics.snapshot()[CLIENT_CALLS].items() >= {
        (("put", "stream-truncated"), 1),
        (("put", "invalid-input"), 1),
        (("match", "invalid-input"), 1),
        (("fetch", "unknown-dictionary"), 1),
    }


async def test_deadlines_pass() -> None:
    async def slow(*_: Any) -> Any:
        await asyncio.sleep(PATIENCE_S)

    async def silent(*_: Any) -> AsyncIterator[Any]:
        await asyncio.sleep(PATIENCE_S)
        yield

    async with serving(Behaviour(match=slow, get=silent, put=slow)) as address:
        transport = GrpcTransport(address, address, interceptors=client_interceptors("c", []))
        with pytest.raises(errors.DeadlineExpired):
            await transport.match(reload_pb2.MatchRequest(), 0.2)
        with pytest.raises(errors.DeadlineExpired):
            await anext(transport.get(reload_pb2.GetRequest(), 0.2))
        with pytest.raises(errors.DeadlineExpired):
            await transport.put(serialised(prompt().upload()), 0.2)
        await transport.close()


class Held:
    """Encoders whose pages wait; what was asked of them, and whether it was cancelled."""

    def __init__(self) -> None:
        self.jobs: list[PageJob] = []
        self.cancelled = 0

    async def place(self, page: list[Piece]) -> Any:
        return None

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.jobs.append(job)
        try:
            await asyncio.sleep(PATIENCE_S)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return PageDone(Outcome.STORED)


async def test_a_cancelled_upload_reaches_the_encoders() -> None:
    held = Held()
    async with intercepted([], encoders=held) as (services, transport, metrics):
        put = asyncio.create_task(transport.put(serialised(prompt().upload()), PATIENCE_S))
        await until(lambda: len(held.jobs) == 2, "both pages with the encoders")
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        await until(lambda: held.cancelled == 2, "both cancelled")
        await until(lambda: services.ingress.budget.used == 0, "their room given back")
    assert metrics.snapshot()[CLIENT_CALLS]["put", "cancelled"] == 1


async def test_a_reader_that_leaves_ends_the_call() -> None:
    ended = asyncio.Event()

    async def endless(*_: Any) -> AsyncGenerator[reload_pb2.GetResponse, None]:
        try:
            while True:
                yield reload_pb2.GetResponse(miss=reload_pb2.Miss(page=0))
        finally:
            ended.set()

    async with serving(Behaviour(get=endless)) as address:
        transport = GrpcTransport(address, interceptors=client_interceptors("c", []))
        async with aclosing(transport.get(reload_pb2.GetRequest(), PATIENCE_S)) as messages:
            await anext(messages)
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
        await transport.close()


async def test_a_client_that_closes_ends_its_calls() -> None:
    held = Held()
    async with intercepted([], encoders=held) as (_, transport, _):
        put = asyncio.create_task(transport.put(serialised(prompt().upload()), PATIENCE_S))
        await until(lambda: len(held.jobs) == 2, "both pages with the encoders")
        await transport.close()
        with pytest.raises(errors.Cancelled):
            await put
        await until(lambda: held.cancelled == 2, "both cancelled")


class Noted(Held):
    """Encoders that answer at once."""

    async def encode(self, job: PageJob, placed: Any) -> PageDone:
        self.jobs.append(job)
        return PageDone(Outcome.STORED)


@pytest.mark.parametrize(
    ("sent", "carried"),
    [
        ((), ()),
        ((("traceparent", PARENT),), (("traceparent", PARENT),)),
        (
            (("traceparent", PARENT), ("tracestate", "a=b")),
            (("traceparent", PARENT), ("tracestate", "a=b")),
        ),
        ((("traceparent", PARENT[1:]), ("tracestate", "a=b")), ()),
        ((("traceparent", PARENT + "x" * 4000),), ()),
        ((("traceparent", PARENT), ("tracestate", "a=" + "b" * 600)), (("traceparent", PARENT),)),
    ],
    ids=["none", "parent", "state", "malformed", "long", "long-state"],
)
async def test_the_trace_of_a_client_arrives_in_the_jobs(
    sent: tuple[tuple[str, str], ...],
    carried: tuple[tuple[str, str], ...],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    encoders = Noted()
    async with intercepted([], *sent, encoders=encoders) as (_, transport, _):
        answer = await transport.put(serialised(prompt().upload()), PATIENCE_S)
    assert [page.outcome for page in answer.pages] == [offload_pb2.PAGE_OUTCOME_STORED] * 2
    assert [job.trace for job in encoders.jobs] == [carried] * 2
    assert PARENT[3:35] not in caplog.text
