"""What one caller of the reload server, or a store that stands still, can take from the others."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from hashlib import blake2b
from typing import Any

import grpc
import pytest

from lexico_proto import errors
from lexico_proto.v1 import dictionaries_pb2 as dict_pb
from lexico_proto.v1 import reload_pb2 as pb
from lexico_proto.v1 import reload_pb2_grpc
from lexico_store import MemoryStore
from lexico_store.lifetimes import Found
from lexico_store.scopes import SHARED_SCOPE
from tests.support.channels import service_channel
from tests.support.dictionaries import random_set
from tests.support.reload_pages import (
    KEYS,
    MIB,
    filled,
    raises,
    registration,
    stream_of,
)
from tests.support.reload_server import nothing_buffered, running
from tests.support.waiting import PATIENCE_S, lingering, skip_ahead, until


async def test_a_get_that_nobody_reads_gives_its_slot_back() -> None:
    store = filled(20, 1, MIB)
    async with running(store, max_streams=1) as services:
        stalled = services.reload.Get(pb.GetRequest(page_keys=KEYS, groups=1))
        await stalled.read()
        with raises(errors.Busy):
            await services.get(KEYS[:1])
        skip_ahead()
        await nothing_buffered(services)
        assert len(await services.get(KEYS[:3])) == 3
        with raises(errors.DeadlineExpired):  # what was on its way comes, then the reason
            while await stalled.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
                pass
            raise AssertionError(await stalled.code())


async def test_a_stalled_get_that_is_cancelled_late_does_no_harm() -> None:
    async with running(filled(20, 1, MIB), max_streams=1) as services:
        for _ in range(3):
            stalled = services.reload.Get(pb.GetRequest(page_keys=KEYS, groups=1))
            await stalled.read()
            skip_ahead()
            await nothing_buffered(services)
            stalled.cancel()
        assert len(await services.get(KEYS[:3])) == 3


async def test_a_peer_that_goes_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    async with running(filled(20, 1, MIB)) as services:
        target = f"127.0.0.1:{services.server.port}"
        for _ in range(8):
            async with service_channel(target) as channel:
                call = reload_pb2_grpc.ReloadStub(channel).Get(
                    pb.GetRequest(page_keys=KEYS, groups=1)
                )
                await call.read()
        await nothing_buffered(services)
    assert [r.getMessage() for r in caplog.records if r.name.startswith("lexico")] == []


async def test_fetch_and_register_have_a_time_as_well() -> None:
    data = bytes(16 * MIB)
    digest = blake2b(data, digest_size=32).digest()
    store = MemoryStore()
    store.put_dictionary(SHARED_SCOPE, digest, data)

    async def silent() -> AsyncIterator[dict_pb.RegisterRequest]:
        yield registration(data, digest)[0]
        await asyncio.Event().wait()

    async with running(store, max_streams=1) as services:
        stalled = services.dictionaries.Fetch(dict_pb.FetchRequest(digest=digest))
        await stalled.read()
        skip_ahead()
        await nothing_buffered(services)
        call = services.dictionaries.Register(silent())
        while not call.done():  # whenever it is that the server begins to count
            skip_ahead()
            await asyncio.sleep(0)
        with raises(errors.DeadlineExpired):
            await call
        request = dict_pb.FetchRequest(digest=digest)
        pieces = [p.data async for p in services.dictionaries.Fetch(request)]
        assert b"".join(pieces) == data
        stalled.cancel()


async def test_a_page_key_is_asked_for_once() -> None:
    async with running(filled(2)) as services:
        with raises(errors.InvalidInput):
            await services.get([KEYS[0], KEYS[1], KEYS[0]])


async def test_a_register_holds_its_slot_to_the_end() -> None:
    class Slow(MemoryStore):
        began, go = threading.Event(), threading.Event()

        def put_dictionary(self, scope: bytes, digest: bytes, data: object) -> None:
            self.began.set()
            self.go.wait(PATIENCE_S)
            super().put_dictionary(scope, digest, data)  # type: ignore[arg-type]

    store, dictionary = Slow(), random_set(layers=1, head_dim=8, atoms=16)
    messages = registration(dictionary.to_bytes(), dictionary.digest)
    async with running(store, max_streams=1) as services:
        call = services.dictionaries.Register(stream_of(messages))
        task = asyncio.ensure_future(call.code())
        await until(store.began.is_set, "the set on its way into the store")
        with raises(errors.Busy):
            await services.get(KEYS[:1])
        call.cancel()  # the thread goes on, so the slot is still taken
        await lingering()
        with raises(errors.Busy):
            await services.get(KEYS[:1])
        store.go.set()
        await task
        await nothing_buffered(services)
        assert len(await services.get(KEYS[:1])) == 1


class Hanging(MemoryStore):
    """Answers `match` once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.go = threading.Event()

    def match(self, *arguments: Any, **more: Any) -> Found:
        self.calls += 1
        self.go.wait(PATIENCE_S)
        return super().match(*arguments, **more)


async def test_every_match_is_answered_in_time_by_a_store_that_hangs() -> None:
    store = Hanging()
    async with running(store, store_threads=2, max_calls=32) as services:
        request = pb.MatchRequest(page_keys=KEYS[:2])
        calls = [services.reload.Match(request) for _ in range(40)]

        def answered() -> int:
            return sum(call.done() for call in calls)

        await until(lambda: answered() == 8, "answers to the calls that are too many", answered)
        skip_ahead()
        codes = [await call.code() for call in calls]
        assert codes.count(grpc.StatusCode.DEADLINE_EXCEEDED) == 32
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == 8
        with raises(errors.Busy):  # threads and queue are still taken: nothing piles up
            await services.reload.Match(request)
        store.go.set()
        while await (call := services.reload.Match(request)).code() is not grpc.StatusCode.OK:
            await asyncio.sleep(0)  # until the threads are free
        assert list((await call).present) == [False, False]
        assert store.calls == 3  # what nobody waited for never began
