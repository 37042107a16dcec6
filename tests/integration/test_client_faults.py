"""A service that is slow, away or lying, over real sockets: misses on reload, else our errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from lexico_client import AsyncClient, Client
from lexico_proto import errors
from lexico_proto.v1 import offload_pb2 as offload
from lexico_proto.v1 import reload_pb2 as reload
from tests.support.client_fixtures import (
    PAGE_TOKENS,
    PATIENT,
    TOKENS,
    Landing,
    first_pages,
    random_cache,
    small_spec,
    views_of,
)
from tests.support.client_server import Behaviour, refuse, serving
from tests.support.waiting import PATIENCE_S, lingering, skip_ahead, until

SPEC = small_spec()
CACHE = random_cache(SPEC, 4)
SOURCE = views_of(SPEC, CACHE)
Get = Callable[[reload.GetRequest, Any], AsyncIterator[reload.GetResponse]]
Change = Callable[[list[reload.GetResponse]], list[reload.GetResponse]]


@pytest.fixture
def behaviour() -> Behaviour:
    return Behaviour()


@pytest.fixture
async def client(behaviour: Behaviour, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    async with serving(behaviour) as address:
        async with AsyncClient(
            reload=address,
            offload=address,
            token="t0ken",
            dictionaries_dir=tmp_path,
            timeouts=PATIENT,
        ) as client:
            await client.offload(SPEC, TOKENS, SOURCE)
            behaviour.calls.clear()
            yield client


def changed(behaviour: Behaviour, change: Change) -> Get:
    async def get(request: reload.GetRequest, context: Any) -> AsyncIterator[reload.GetResponse]:
        messages = [message async for message in behaviour.memory.get(request, 9)]
        for message in change(messages):
            yield message

    return get


def swap(messages: list[reload.GetResponse]) -> list[reload.GetResponse]:
    messages[9], messages[10] = messages[10], messages[9]
    return messages


def oversize(messages: list[reload.GetResponse]) -> list[reload.GetResponse]:
    messages[10].frame.frame_bytes = 1 << 40
    return messages


def over_the_message_limit(messages: list[reload.GetResponse]) -> list[reload.GetResponse]:
    messages[10].frame.data = bytes(3 << 20)
    return messages


def repeated(messages: list[reload.GetResponse]) -> list[reload.GetResponse]:
    return [*messages[:10], *messages[9:]]


def cut(messages: list[reload.GetResponse]) -> list[reload.GetResponse]:
    return messages[:10]


def nothing(messages: list[reload.GetResponse]) -> list[reload.GetResponse]:
    return []


@pytest.mark.parametrize(
    ("change", "pages", "reason"),
    [
        (swap, 1, errors.InternalError),
        (oversize, 2, errors.InternalError),
        (over_the_message_limit, 2, errors.Busy),
        (repeated, 2, errors.InternalError),
        (cut, 2, errors.InternalError),
        (nothing, 0, errors.InternalError),
    ],
)
async def test_a_stream_that_breaks_the_protocol_gives_what_came_before(
    behaviour: Behaviour,
    client: AsyncClient,
    change: Change,
    pages: int,
    reason: type[errors.LexicoError],
) -> None:
    behaviour.get, landing = changed(behaviour, change), Landing(SPEC)
    loaded = await client.load(SPEC, TOKENS, landing)
    assert (loaded.pages, loaded.tokens, type(loaded.reason)) == (
        pages,
        pages * PAGE_TOKENS,
        reason,
    )
    good = first_pages(landing.cache, SPEC, pages)
    assert torch.equal(good, first_pages(CACHE, SPEC, pages))


async def test_messages_after_the_last_frame_do_no_harm(
    behaviour: Behaviour, client: AsyncClient
) -> None:
    behaviour.get, landing = changed(behaviour, lambda m: [*m, m[0]]), Landing(SPEC)
    loaded = await client.load(SPEC, TOKENS, landing)
    assert (loaded.pages, loaded.reason) == (4, None)


def stalling(behaviour: Behaviour, messages: int, landing: Landing, pages: int) -> Get:
    """A Get that stands still after so many messages, and lets all time be over once the pages that
    they make whole have landed.
    """

    def landed() -> bool:
        return pages == 0 or not first_pages(landing.cache, SPEC, pages).isnan().any()

    async def get(request: reload.GetRequest, context: Any) -> AsyncIterator[reload.GetResponse]:
        given = 0
        async for message in behaviour.memory.get(request, 9):
            if given == messages:
                await until(landed, f"{pages} whole pages")
                skip_ahead()
                await asyncio.Event().wait()
            given += 1
            yield message

    return get


@pytest.mark.parametrize(("slow", "pages"), [("match", 0), ("get", 0), ("get", 2)])
async def test_a_slow_service_is_a_miss_within_the_deadline(
    behaviour: Behaviour, client: AsyncClient, slow: str, pages: int
) -> None:
    async def match(request: reload.MatchRequest, context: Any) -> reload.MatchResponse:
        skip_ahead()
        await asyncio.Event().wait()
        raise AssertionError

    landing = Landing(SPEC)
    if slow == "match":
        behaviour.match = match
    else:
        behaviour.get = stalling(behaviour, 10 if pages else 0, landing, pages)
    loaded = await client.load(SPEC, TOKENS, landing, timeout=PATIENCE_S)
    assert loaded.pages == pages
    assert type(loaded.reason) is errors.DeadlineExpired


async def test_a_service_that_stalls_costs_the_idle_limit_and_no_whole_load(
    behaviour: Behaviour, client: AsyncClient
) -> None:
    landing = Landing(SPEC)
    behaviour.get = stalling(behaviour, 10, landing, pages=2)
    loaded = await client.load(SPEC, TOKENS, landing, timeout=100 * PATIENCE_S)
    assert loaded.pages == 2
    assert type(loaded.reason) is errors.DeadlineExpired
    assert "nothing came" in loaded.reason.message


async def test_endless_tiny_frames(behaviour: Behaviour, client: AsyncClient) -> None:
    """Something comes all the time, so that only the deadline of the whole ends it."""

    async def get(request: reload.GetRequest, context: Any) -> AsyncIterator[reload.GetResponse]:
        async for message in behaviour.memory.get(request, 9):
            part = message.frame
            for at in range(len(part.data)):
                tiny = reload.FramePart(
                    page=part.page,
                    group=part.group,
                    frame_bytes=part.frame_bytes,
                    data=part.data[at : at + 1],
                )
                yield reload.GetResponse(frame=tiny)
                await lingering()

    behaviour.get = get
    async with asyncio.timeout(PATIENCE_S):
        loaded = await client.load(SPEC, TOKENS, Landing(SPEC), timeout=0.5)
    assert (loaded.pages, type(loaded.reason)) == (0, errors.DeadlineExpired)


async def test_a_peer_that_goes_away_in_the_middle(behaviour: Behaviour, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def get(request: reload.GetRequest, context: Any) -> AsyncIterator[reload.GetResponse]:
        async for message in behaviour.memory.get(request, 9):
            yield message
            gone.set()
            await asyncio.Event().wait()

    async with contextlib.AsyncExitStack() as server:
        address = await server.enter_async_context(serving(behaviour))
        client = AsyncClient(reload=address, offload=address, dictionaries_dir=tmp_path)
        await client.offload(SPEC, TOKENS, SOURCE, timeout=PATIENCE_S)
        behaviour.get = get
        load = asyncio.create_task(client.load(SPEC, TOKENS, Landing(SPEC)))
        await gone.wait()
    async with asyncio.timeout(PATIENCE_S):
        loaded = await load
        assert loaded.pages == 0
        assert isinstance(loaded.reason, errors.LexicoError)
        await client.close()


async def test_a_replica_that_goes_is_tried_once_more(
    behaviour: Behaviour, client: AsyncClient
) -> None:
    failures = [errors.Unavailable("draining")]

    async def get(request: reload.GetRequest, context: Any) -> AsyncIterator[reload.GetResponse]:
        given = 0
        async for message in behaviour.memory.get(request, 9):
            if failures and given == 7:
                raise failures.pop()
            given += 1
            yield message

    behaviour.get, landing = get, Landing(SPEC)
    loaded = await client.load(SPEC, TOKENS, landing)
    assert (loaded.pages, loaded.reason) == (4, None)
    assert torch.equal(landing.cache, CACHE)
    assert behaviour.calls == ["match", "get", "get"]


@pytest.mark.parametrize(
    ("error", "reason", "expected"),
    [
        (errors.StoreUnavailable("no"), None, errors.StoreUnavailable),
        (errors.StoreUnavailable("no"), "a-word-of-tomorrow", errors.Unavailable),
        (errors.Busy("full"), "store-unavailable", errors.Busy),
        (errors.PermissionDenied("not yours"), None, errors.PermissionDenied),
        (errors.Unauthenticated("who?"), "", errors.Unauthenticated),
    ],
)
async def test_the_error_that_the_service_names_is_raised(
    behaviour: Behaviour,
    client: AsyncClient,
    error: errors.LexicoError,
    reason: str | None,
    expected: type[errors.LexicoError],
) -> None:
    async def match(request: reload.MatchRequest, context: Any) -> reload.MatchResponse:
        await refuse(context, error, reason)

    behaviour.match = match
    with pytest.raises(errors.LexicoError) as caught:
        await client.match(SPEC, TOKENS)
    assert (type(caught.value), caught.value.message) == (expected, error.message)
    assert isinstance(caught.value.__cause__, grpc.RpcError)
    assert behaviour.calls == ["match"] * (2 if isinstance(error, errors.Unavailable) else 1)


async def test_an_answer_of_another_length(behaviour: Behaviour, client: AsyncClient) -> None:
    async def match(request: reload.MatchRequest, context: Any) -> reload.MatchResponse:
        return reload.MatchResponse(leading=9, present=[True] * 9)

    behaviour.match = match
    with pytest.raises(errors.InternalError, match="does not fit"):
        await client.match(SPEC, TOKENS)
    loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
    assert (loaded.tokens, type(loaded.reason)) == (0, errors.InternalError)


async def test_a_handler_that_crashes(behaviour: Behaviour, client: AsyncClient) -> None:
    async def get(request: reload.GetRequest, context: Any) -> AsyncIterator[reload.GetResponse]:
        raise ZeroDivisionError
        yield

    behaviour.get = get
    loaded = await client.load(SPEC, TOKENS, Landing(SPEC))
    assert loaded.tokens == 0
    assert isinstance(loaded.reason, errors.LexicoError)


async def test_the_token_travels(behaviour: Behaviour, client: AsyncClient) -> None:
    await client.match(SPEC, TOKENS)
    assert ("authorization", "Bearer t0ken") in behaviour.metadata


async def test_a_refusal_in_the_middle_of_an_upload(
    behaviour: Behaviour, client: AsyncClient
) -> None:
    async def put(requests: Any, context: Any) -> offload.PutResponse:
        async for _ in requests:
            break
        raise errors.Busy("over the byte budget")

    behaviour.put = put
    large = small_spec(dtype="float32")
    tokens = list(range(8 * 600))
    with pytest.raises(errors.Busy, match="byte budget"):
        await client.offload(large, tokens, views_of(large, random_cache(large, 600)))


async def test_a_server_that_takes_nothing_in(behaviour: Behaviour, client: AsyncClient) -> None:
    async def put(requests: Any, context: Any) -> offload.PutResponse:
        await asyncio.Event().wait()
        raise AssertionError

    behaviour.put = put
    large = small_spec(dtype="float32")
    tokens = list(range(8 * 600))
    with pytest.raises(errors.DeadlineExpired):
        await client.offload(large, tokens, views_of(large, random_cache(large, 600)), timeout=0.5)


async def test_a_client_without_an_offload_address(behaviour: Behaviour, tmp_path: Path) -> None:
    async with serving(behaviour) as address:
        async with AsyncClient(reload=address, dictionaries_dir=tmp_path) as client:
            with pytest.raises(errors.ConfigurationError, match="offload"):
                await client.offload(SPEC, TOKENS, SOURCE)


async def test_the_sync_face_over_sockets(behaviour: Behaviour, tmp_path: Path) -> None:
    landing = Landing(SPEC)

    def work(address: str) -> int:
        with Client(
            reload=address, offload=address, dictionaries_dir=tmp_path, timeouts=PATIENT
        ) as client:
            client.offload(SPEC, TOKENS, SOURCE)
            return client.load(SPEC, TOKENS, landing).pages

    async with serving(behaviour) as address:
        assert await asyncio.to_thread(work, address) == 4
    assert torch.equal(landing.cache, CACHE)
