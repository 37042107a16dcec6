"""Endpoints over real sockets: whose token is sent, and channels that are replaced under way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lexico_client import AsyncClient, Endpoint, GrpcTransport
from lexico_proto import errors
from lexico_proto.v1 import reload_pb2
from tests.support.changing_security import Changing
from tests.support.client_server import Behaviour, serving
from tests.support.services import prompt, running_services, serialised
from tests.support.waiting import PATIENCE_S


async def test_an_endpoints_token_names_the_tenant(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("one:token-of-tenant-one\n")
    async with running_services(token_file=tokens) as services:
        for token, known in (("token-of-tenant-one", True), ("token-of-nobody", False)):
            endpoint = Endpoint(services.reload_address, token)
            async with AsyncClient(reload=endpoint, dictionaries_dir=tmp_path) as client:
                if known:
                    assert await client.list_dictionaries(timeout=PATIENCE_S) == []
                else:
                    with pytest.raises(errors.Unauthenticated):
                        await client.list_dictionaries(timeout=PATIENCE_S)


async def test_each_endpoint_has_its_own_token() -> None:
    behaviour = Behaviour()
    async with serving(behaviour) as address:
        transport = GrpcTransport(Endpoint(address, "down"), Endpoint(address, "up"))
        for call, token in (
            (transport.match(reload_pb2.MatchRequest(), PATIENCE_S), "down"),
            (transport.put(serialised(prompt().upload()), PATIENCE_S), "up"),
        ):
            await call
            assert dict(behaviour.metadata)["authorization"] == f"Bearer {token}"
        await transport.close()


async def test_one_token_serves_endpoints_without() -> None:
    behaviour = Behaviour()
    async with serving(behaviour) as address:
        transport = GrpcTransport(Endpoint(address), address, "both")
        for call in (
            transport.match(reload_pb2.MatchRequest(), PATIENCE_S),
            transport.put(serialised(prompt().upload()), PATIENCE_S),
        ):
            await call
            assert dict(behaviour.metadata)["authorization"] == "Bearer both"
        await transport.close()


async def test_calls_end_on_the_channel_that_they_were_begun_on() -> None:
    go_on, changing = asyncio.Event(), Changing()

    async def halting(*_: Any) -> AsyncIterator[reload_pb2.GetResponse]:
        yield reload_pb2.GetResponse(miss=reload_pb2.Miss(page=0))
        await go_on.wait()
        yield reload_pb2.GetResponse(miss=reload_pb2.Miss(page=1))

    async with serving(Behaviour(get=halting)) as address:
        transport = GrpcTransport(Endpoint(address, None, changing))
        messages = transport.get(reload_pb2.GetRequest(), PATIENCE_S)
        assert (await anext(messages)).miss.page == 0
        changing.now = 1
        await transport.match(reload_pb2.MatchRequest(), PATIENCE_S)
        assert changing.made == [0, 1]
        go_on.set()
        assert [message.miss.page async for message in messages] == [1]
        await transport.close()
