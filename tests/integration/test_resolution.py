"""Clients find the servers that a name stands for, and leave those that end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import torch

from lexico_client import AsyncClient, GrpcTransport, Loaded, PageOutcome, PutReport
from lexico_proto import errors
from lexico_proto.metrics import CLIENT_RETRIES, Metrics
from lexico_proto.v1 import reload_pb2
from lexico_services.config import ListenConfig
from lexico_services.server import GrpcServer
from tests.support.client_fixtures import (
    PATIENT,
    TOKENS,
    Landing,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.client_server import Behaviour, register
from tests.support.names import Names, name_server
from tests.support.services import prompt, serialised
from tests.support.waiting import PATIENCE_S, skip_ahead, until

NAME = "reload.lexico.test"
FIRST, SECOND = "127.0.0.2", "127.0.0.3"


@pytest.fixture
def names() -> Iterator[Names]:
    with name_server() as names:
        yield names


@asynccontextmanager
async def server(
    host: str,
    behaviour: Behaviour,
    port: int = 0,
    age_s: float = 1.0,
    drain_s: float = PATIENCE_S,
) -> AsyncIterator[GrpcServer]:
    """A server whose connections take new calls for a second."""
    listen = ListenConfig(host=host, port=port, drain_s=drain_s, connection_age_s=age_s)
    started = GrpcServer(listen, lambda grpc_server: register(behaviour, grpc_server), ())
    await started.start()
    try:
        yield started
    finally:
        await started.drain()


async def matched(transport: GrpcTransport, times: int = 1) -> None:
    for _ in range(times):
        await transport.match(reload_pb2.MatchRequest(), PATIENCE_S)


async def test_calls_go_to_every_address_in_turn() -> None:
    one, two = Behaviour(), Behaviour()
    async with server(FIRST, one) as first, server(SECOND, two, first.port):
        transport = GrpcTransport(f"ipv4:{FIRST}:{first.port},{SECOND}:{first.port}")

        async def both() -> bool:
            await matched(transport)
            return bool(one.calls and two.calls)

        while not await both():  # the second connection may be made later
            pass
        one.calls.clear()
        two.calls.clear()
        await matched(transport, 10)
        assert len(one.calls) == len(two.calls) == 5
        await transport.close()


async def test_a_new_server_takes_load_once_connections_have_their_age(names: Names) -> None:
    one, two = Behaviour(), Behaviour()
    async with server(FIRST, one) as first, server(SECOND, two, first.port):
        names.set(NAME, [FIRST])
        transport = GrpcTransport(names.target(NAME, first.port))
        await matched(transport, 5)
        assert (len(one.calls), len(two.calls)) == (5, 0)
        names.set(NAME, [FIRST, SECOND])
        while not two.calls:  # not one call fails meanwhile
            await matched(transport)
        await transport.close()


async def test_connections_stay_where_no_age_is_set(names: Names) -> None:
    peers: set[str] = set()

    async def match(_: Any, context: Any) -> reload_pb2.MatchResponse:
        peers.add(context.peer())
        return reload_pb2.MatchResponse()

    young, old = Behaviour(), Behaviour(match=match)
    async with server(FIRST, young) as first, server(FIRST, old, age_s=0.0) as second:
        names.set(NAME, [FIRST])
        turned_over = GrpcTransport(names.target(NAME, first.port))
        stays = GrpcTransport(names.target(NAME, second.port))
        await matched(stays)
        await matched(turned_over)
        asked = names.asked
        while names.asked == asked:  # a connection of the other one was over its age
            await matched(turned_over)
            await matched(stays)
        assert len(peers) == 1
        await turned_over.close()
        await stays.close()


async def test_a_call_under_way_outlives_the_age_of_its_connection(names: Names) -> None:
    go_on, peers = asyncio.Event(), set[str]()

    async def get(_: Any, context: Any) -> AsyncIterator[reload_pb2.GetResponse]:
        peers.add(context.peer())
        yield reload_pb2.GetResponse(miss=reload_pb2.Miss(page=0))
        await go_on.wait()
        yield reload_pb2.GetResponse(miss=reload_pb2.Miss(page=1))

    async def match(_: Any, context: Any) -> reload_pb2.MatchResponse:
        peers.add(context.peer())
        return reload_pb2.MatchResponse()

    async with server(FIRST, Behaviour(get=get, match=match)) as first:
        names.set(NAME, [FIRST])
        transport = GrpcTransport(names.target(NAME, first.port))
        messages = transport.get(reload_pb2.GetRequest(), PATIENCE_S)
        assert (await anext(messages)).miss.page == 0
        while len(peers) < 3:  # two connections are over their age
            await matched(transport)
        go_on.set()
        assert [message.miss.page async for message in messages] == [1]
        await transport.close()


async def test_an_upload_outlives_the_age_of_its_connection(names: Names) -> None:
    peers: set[str] = set()

    async def match(_: Any, context: Any) -> reload_pb2.MatchResponse:
        peers.add(context.peer())
        return reload_pb2.MatchResponse()

    async with server(FIRST, Behaviour(match=match)) as first:
        names.set(NAME, [FIRST])
        target = names.target(NAME, first.port)
        transport, pages = GrpcTransport(target, target), prompt()

        async def slow() -> AsyncIterator[bytes]:
            async for message in serialised(pages.upload()):
                yield message
                while len(peers) < 3:
                    await matched(transport)

        answer = await transport.put(slow(), PATIENCE_S)  # type: ignore[arg-type]
        assert [result.page for result in answer.pages] == [0, 1]
        await transport.close()


async def test_a_draining_server_is_left_and_no_call_is_lost(names: Names) -> None:
    one, two = Behaviour(), Behaviour()
    two.memory = one.memory
    spec, landing = small_spec(), Landing(small_spec())
    cache = random_cache(spec, 4)
    async with server(FIRST, one, age_s=0.0) as first, server(SECOND, two, first.port, 0.0):
        names.set(NAME, [FIRST, SECOND])
        target = names.target(NAME, first.port)
        async with AsyncClient(reload=target, offload=target, timeouts=PATIENT) as client:
            while not (one.calls and two.calls):
                await client.match(spec, TOKENS)
            draining = asyncio.create_task(first.drain())
            for _ in range(20):
                await client.offload(spec, TOKENS, views_of(spec, cache))
                loaded = await client.load(spec, TOKENS, landing)
                assert (loaded.pages, loaded.reason) == (4, None)
            await draining
            two.calls.clear()
            await client.match(spec, TOKENS)
            assert two.calls == ["match"]


async def test_a_call_that_comes_as_a_server_begins_to_drain_is_made_again() -> None:
    dropped: list[str] = []

    async def match(request: reload_pb2.MatchRequest, context: Any) -> reload_pb2.MatchResponse:
        if not dropped:
            dropped.append("match")
            # As gRPC does it: without a word of ours.
            await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")
        return reload_pb2.MatchResponse(present=[False] * len(request.page_keys))

    metrics = Metrics()
    async with server(FIRST, Behaviour(match=match)) as first:
        address = f"{FIRST}:{first.port}"
        async with AsyncClient(reload=address, timeouts=PATIENT, metrics=metrics) as client:
            assert (await client.match(small_spec(), TOKENS)).pages == 0
    assert dropped
    assert sum(metrics.snapshot()[CLIENT_RETRIES].values()) == 1


async def halting(*_: Any) -> Any:
    await asyncio.Event().wait()


async def halting_stream(*_: Any) -> AsyncIterator[reload_pb2.GetResponse]:
    yield await halting()


async def test_calls_that_a_drain_cuts_off_are_made_again_at_another_server(names: Names) -> None:
    one, two, metrics = Behaviour(), Behaviour(), Metrics()
    two.memory = one.memory
    spec = small_spec()
    cache = random_cache(spec, 4)
    source = views_of(spec, cache)
    async with server(FIRST, one, drain_s=0.0) as first, server(SECOND, two, first.port):
        names.set(NAME, [FIRST, SECOND])
        target = names.target(NAME, first.port)
        async with AsyncClient(
            reload=target, offload=target, timeouts=PATIENT, metrics=metrics
        ) as client:
            await client.offload(spec, TOKENS, source)
            one.calls.clear()
            one.get, one.put = halting_stream, halting
            offloads: list[asyncio.Task[PutReport]] = []
            while "put" not in one.calls:  # others go to the second server, and end
                tokens = [token + 1000 * (1 + len(offloads)) for token in TOKENS]
                offloads.append(asyncio.create_task(client.offload(spec, tokens, source)))
                await until(lambda: "put" in one.calls or offloads[-1].done(), "an offload")
            landings: list[Landing] = []
            loads: list[asyncio.Task[Loaded]] = []
            while "get" not in one.calls:
                await client.match(spec, TOKENS)  # an odd number of calls: the servers take turns
                landings.append(Landing(spec))
                loads.append(asyncio.create_task(client.load(spec, TOKENS, landings[-1])))
                await until(lambda: "get" in one.calls or loads[-1].done(), "a load")
            await first.drain()
            reports = [await offload for offload in offloads]
            assert all(each.pages == (PageOutcome.STORED,) * 4 for each in reports)
            loaded = [await load for load in loads]
            assert all((each.pages, each.reason) == (4, None) for each in loaded)
            assert all(torch.equal(each.cache, cache) for each in landings)
            cut = one.calls.count("get") + one.calls.count("put")
            assert sum(metrics.snapshot()[CLIENT_RETRIES].values()) == cut


async def test_a_name_that_had_no_address_is_looked_up_again(names: Names) -> None:
    behaviour = Behaviour()
    async with server(FIRST, behaviour) as first:
        transport = GrpcTransport(names.target(NAME, first.port))

        async def fails() -> bool:
            with pytest.raises(errors.Unavailable):
                await matched(transport)
            return True

        assert await fails()
        assert await fails()  # by now the channel is seen to fail
        names.set(NAME, [FIRST])
        skip_ahead(6.0)  # gRPC itself would wait ever longer

        async def there() -> bool:
            try:
                await matched(transport)
            except errors.Unavailable:
                return False
            return True

        await until_true(there)
        assert behaviour.calls == ["match"]
        await transport.close()


async def until_true(look: Any) -> None:
    while not await look():
        pass
